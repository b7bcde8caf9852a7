"""The page for people at other computers: behind a proxy, with links that end, a health check and a log."""

import json
import socket
import ssl
import threading
from datetime import datetime, timedelta, timezone

import httpx
import pytest
from proxies import proxied
from small_review import PORT, open_review, write_volumes
from waiting import wait_for

from nnunetv2_deferral.commands.review import Operation
from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.review.access import COORDINATOR, Access, Address, Person
from nnunetv2_deferral.review.server import create_app, serve

CASE = "case_a"
PUBLIC = Address(port=PORT, public_url="https://Review.example.org/lung/")
ANN = Person("ann", "ann")


def at(monkeypatch, moment):
    class Clock(datetime):
        @classmethod
        def now(cls, tz=None):
            return moment

    monkeypatch.setattr("nnunetv2_deferral.review.access.datetime", Clock)


@pytest.mark.parametrize(
    "url",
    [
        *("review.example.org", "ftp://review.example.org", "https://", "https://a@b.org", "https://b.org/?a=1"),
        *("https://[::1", "https://b.org:abc", "https://b.org:99999", "https://b.org/l\u00e4ng", "https://b.org/a;b"),
    ],
)
def test_what_is_not_an_address_is_refused(url):
    with pytest.raises(InputError, match=r"\(--public_url\)"):
        Address(port=PORT, public_url=url)


@pytest.mark.parametrize(
    ("url", "link", "host"),
    [
        (" HTTPS://Review.Example.org:443", "https://review.example.org/", "review.example.org"),
        ("http://review.example.org:80/a/b/", "http://review.example.org/a/b/", "review.example.org"),
        ("https://review.example.org:8443/a", "https://review.example.org:8443/a/", "review.example.org:8443"),
        ("https://m\u00fcnchen.example.org", "https://xn--mnchen-3ya.example.org/", "xn--mnchen-3ya.example.org"),
        ("http://[::1]:81", "http://[::1]:81/", "[::1]:81"),
    ],
)
def test_an_address_is_stated_as_browsers_state_it(url, link, host):
    address = Address(port=PORT, public_url=url)
    assert address.url == link
    assert address.origins[host] == link.partition("//")[0] + "//" + host


@pytest.mark.parametrize("proxy", ["*", "review.example.org", "127.0.0.1/8"])
def test_a_proxy_is_named_by_its_address(proxy):
    with pytest.raises(InputError, match="must be named by its IP address"):
        Operation(proxy=proxy)


def test_behind_a_proxy_links_cookies_and_origins_are_those_of_its_address(tmp_path, serve):
    served = serve(write_volumes(tmp_path), of_access={"address": PUBLIC})
    link = dict(served.access.links())[ANN]
    assert link.startswith("https://review.example.org/lung/#enter=")
    secret, host = link.partition("=")[2], {"host": "review.example.org"}
    browser = served.browser()
    good = host | {"origin": "https://review.example.org"}
    entered = browser.post("/api/enter", json={"secret": secret}, headers=good)
    assert entered.status_code == 200
    assert "Path=/lung/; SameSite=strict; Secure" in entered.headers["set-cookie"]
    for origin in ("http://review.example.org", "https://other.org", f"http://127.0.0.1:{PORT}"):
        assert browser.post("/api/enter", json={"secret": secret}, headers=host | {"origin": origin}).status_code == 403
    local = browser.post("/api/enter", json={"secret": secret})
    assert "Path=/; SameSite=strict" in local.headers["set-cookie"]
    assert "Secure" not in local.headers["set-cookie"]
    assert browser.get("/", headers={"host": "other.org"}).status_code == 403
    elsewhere = {"sec-fetch-site": "cross-site"}  # a link in a mail that is read in the browser
    assert browser.get("/", headers=host | elsewhere).status_code == 200
    assert browser.get("/api/me", headers=host | elsewhere).status_code == 403
    assert browser.get("/health").json() == {"status": "ok", "read": 2, "cases": 2}  # under its own address, too


def test_a_link_and_its_session_end_with_its_days(tmp_path, serve, monkeypatch):
    now = datetime(2026, 3, 1, 12, tzinfo=timezone.utc)
    at(monkeypatch, now)
    folders = write_volumes(tmp_path)
    served = serve(folders, of_access={"valid_days": 7})
    ann = served.browser("ann")
    assert ann.get("/api/cases").status_code == 200
    assert served.access.expires(ANN) == now + timedelta(days=7)
    at(monkeypatch, now + timedelta(days=7, seconds=-1))
    assert ann.get("/api/cases").status_code == 200
    at(monkeypatch, now + timedelta(days=7))
    assert ann.get("/api/cases").status_code == 401
    secret = dict(served.access.links())[ANN].partition("=")[2]
    answer = ann.post("/api/enter", json={"secret": secret})
    assert answer.status_code == 403
    assert "has expired" in answer.json()["reason"]
    served.review.store.close()
    again = serve(folders, of_access={"valid_days": 7})
    assert dict(again.access.links())[ANN].partition("=")[2] != secret  # a new link at the next start
    assert again.browser("ann").get("/api/cases").status_code == 200


def test_links_without_days_do_not_end_and_later_starts_do_not_extend_others(tmp_path, monkeypatch):
    now = datetime(2026, 3, 1, tzinfo=timezone.utc)
    at(monkeypatch, now)
    first = Access(tmp_path, ["ann"], Address(port=PORT))
    assert first.expires(COORDINATOR) is None
    at(monkeypatch, now + timedelta(days=400))
    assert Access(tmp_path, ["ann"], Address(port=PORT)).links() == first.links()
    again = Access(tmp_path, ["ann"], Address(port=PORT), valid_days=30)
    assert again.links() == first.links()
    assert again.expires(ANN) == now + timedelta(days=430)
    for days in (None, 60):
        assert Access(tmp_path, ["ann"], Address(port=PORT), valid_days=days).expires(ANN) == again.expires(ANN)
    at(monkeypatch, now + timedelta(days=430))
    replaced = Access(tmp_path, ["ann"], Address(port=PORT))
    assert not set(replaced.links()) & set(first.links())
    assert replaced.expires(ANN) is None


def test_a_revoked_link_ends_and_others_stay(tmp_path):
    before = dict(Access(tmp_path, ["ann", "bob"], Address(port=PORT)).links())
    after = dict(Access(tmp_path, ["ann", "bob"], Address(port=PORT), revoked=["ann"]).links())
    assert {person.name for person in before if before[person] != after[person]} == {"ann"}
    with pytest.raises(InputError, match="no link of zoe to revoke; links have coordinator, ann, bob"):
        Access(tmp_path, ["ann", "bob"], Address(port=PORT), revoked=["zoe"])


@pytest.mark.parametrize("days", [0, -1, float("nan"), 1e9])
def test_days_out_of_range_are_refused(tmp_path, days):
    with pytest.raises(InputError, match="links must be valid for more than 0"):
        Access(tmp_path, ["ann"], Address(port=PORT), valid_days=days)


def test_links_of_an_older_version_count_from_now(tmp_path):
    (tmp_path / "access.json").write_text(json.dumps({"coordinator": "c" * 43, "experts": {"ann": "a" * 43}}))
    access = Access(tmp_path, ["ann"], Address(port=PORT), valid_days=1)
    assert dict(access.links())[ANN].endswith("a" * 43)
    assert access.expires(ANN) > datetime.now(timezone.utc)


def test_the_log_has_a_line_for_each_request_and_no_case(tmp_path, serve):
    log = tmp_path / "logs" / "access.jsonl"
    served = serve(write_volumes(tmp_path), log=log)
    ann = served.browser("ann")
    ann.get(f"/api/cases/{CASE}")
    ann.get(f"/api/cases/{CASE}x")
    ann.get("/static/app.js")
    served.browser().get("/api/cases")
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [(line["person"], line["method"], line["route"], line["status"]) for line in lines] == [
        (None, "POST", "/api/enter", 200),
        ("ann", "GET", "/api/cases/{case}", 200),
        ("ann", "GET", "/api/cases/{case}", 404),
        ("ann", "GET", "other", 200),
        (None, "GET", "/api/cases", 401),
    ]
    assert CASE not in log.read_text()
    assert all(line["milliseconds"] >= 0 and line["client"] for line in lines)


def test_a_log_that_cannot_be_written_is_named(tmp_path, serve):
    folders = write_volumes(tmp_path)
    (tmp_path / "log").mkdir()
    with pytest.raises(InputError, match="log cannot be written to"):
        serve(folders, log=tmp_path / "log")
    open_review(folders).store.close()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["nginx", "caddy"])
def test_through_a_real_proxy_an_expert_answers_below_its_path(tmp_path, name):
    playwright = pytest.importorskip("playwright.sync_api")
    folders, log = write_volumes(tmp_path), tmp_path / "access.jsonl"
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        with proxied(name, tmp_path / name, port) as url:
            review = open_review(folders)
            access = Access(review.store.hidden, review.people, Address(port=port, public_url=url))
            stop = threading.Event()
            server = threading.Thread(
                target=serve,
                args=(create_app(review, access, log), listening, lambda runs: stop.wait()),
                kwargs={"proxy": "127.0.0.1"},
                daemon=True,
            )
            server.start()
            trusted = ssl.create_default_context(cafile=str(tmp_path / name / "cert.pem"))
            wait_for(lambda: httpx.get(f"{url}health", verify=trusted).status_code == 200, alive=server.is_alive)
            with playwright.sync_playwright() as started:
                browser = started.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
                page = browser.new_context(ignore_https_errors=True).new_page()
                page.goto(dict(access.links())[ANN])
                page.wait_for_selector("canvas.slice")
                page.get_by_role("button", name="Got it").click()
                page.keyboard.press("m")
                page.keyboard.press("m")
                playwright.expect(page.locator(".save-state")).to_have_text("Saved", timeout=8000)
                with page.expect_download() as download:
                    page.locator("summary").click()
                    page.get_by_role("link", name="Mask").click()
                assert download.value.suggested_filename == "case_a_mask.nii.gz"
                browser.close()
            assert review.store.draft("ann", CASE).done == (1, 2)
            review.store.close()
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert {line["client"] for line in lines} <= {"127.0.0.1", "::1"}
    assert {"/api/cases/{case}/save", "/api/cases/{case}/download/{what}"} <= {line["route"] for line in lines}
