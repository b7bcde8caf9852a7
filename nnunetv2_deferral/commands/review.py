"""`nnUNetv2_deferral_review`: serve the review page, where experts annotate the deferred regions in the browser."""

from __future__ import annotations

import ipaddress
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nnunetv2_deferral.commands import parsers
from nnunetv2_deferral.defaults import MEASURED_BY, PORT
from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.experts import names_of, remark_on_simulated
from nnunetv2_deferral.predictions import PredictionFolder
from nnunetv2_deferral.readings import ReadingRules
from nnunetv2_deferral.text import plural

if TYPE_CHECKING:
    from nnunetv2_deferral.review.study import Study


# Packages of the extra `review`, imported nowhere else.
EXTRA = ("starlette", "uvicorn")


@dataclass(frozen=True, kw_only=True)
class Operation:
    """How the page is operated for people at other computers.

    Attributes:
        public_url: The address under which a proxy on this machine serves it; None without one.
        proxy: The address of the proxy, whose X-Forwarded-For is believed in the log; None to believe nobody's.
        valid_days: The number of days after which links expire; None for links that do not.
        revoked: The names of people who get new links.
        access_log: The file of a log of requests; None for none.

    Raises:
        InputError: If the proxy's address is not an IP address.
    """

    public_url: str | None = None
    proxy: str | None = None
    valid_days: float | None = None
    revoked: tuple[str, ...] = ()
    access_log: Path | None = None

    def __post_init__(self) -> None:
        try:
            ipaddress.ip_address(self.proxy or "127.0.0.1")
        except ValueError:
            raise InputError(f"the proxy must be named by its IP address, got {self.proxy!r} (--proxy)") from None


def review(
    predictions: str | Path,
    images: str | Path,
    output_folder: str | Path,
    *,
    references: str | Path | None = None,
    worklist: str | Path | None = None,
    rules: ReadingRules | None = None,
    dataset_json: str | Path | None = None,
    port: int = PORT,
    operation: Operation | None = None,
    show_scores: bool = False,
    blind_start: bool = False,
) -> None:
    """Serve the review page on 127.0.0.1 until interrupted, and print one link per expert.

    Args:
        predictions: Folder of masks with deferral maps, from nnUNetv2_predict or a final validation.
        images: Folder of the images, `<case>_0000<file_ending>` and so on.
        output_folder: Output folder for the answers, see docs/reference/review.md; an existing review is continued.
        references: Folder of reference masks, for the coordinator's scores; None for no scores.
        worklist: Folder of nnUNetv2_deferral_worklist, to ask about its regions only; None for all regions.
        rules: To ask two readers about each region: when they agree, and who decides if they do not. None for one.
        dataset_json: The model's dataset.json, if it is not beside the predictions.
        port: Port on 127.0.0.1.
        operation: How it is operated for others; None for the defaults.
        show_scores: Show reference and scores to experts, too, once they have submitted a case.
        blind_start: Hide the model's mask from an expert until they have submitted the case.

    Raises:
        InputError: If an input is missing or inconsistent, the output folder overlaps an input folder, the review was
            started with an incompatible worklist or other rules, another server is using the folder, or the port
            cannot be used.
        ImportError: If the packages of the extra `review` are not installed.
    """
    # Imported here, because the other commands do not need the packages of the extra.
    from nnunetv2_deferral.review.access import Access, Address
    from nnunetv2_deferral.review.server import create_app, listen, serve
    from nnunetv2_deferral.review.service import Blinding, Review
    from nnunetv2_deferral.review.store import ReviewStore
    from nnunetv2_deferral.review.study import Study
    from nnunetv2_deferral.worklist.reading import Worklist

    inputs = [Path(folder) for folder in (predictions, images, references, worklist) if folder is not None]
    _check_folders(inputs, Path(output_folder))
    operation = operation or Operation()
    address = Address(port=port, public_url=operation.public_url)
    with listen(port) as listening:  # before anything is read, which may take minutes
        opened = PredictionFolder.open(
            Path(predictions), Path(dataset_json) if dataset_json else None, needed=MEASURED_BY
        )
        if not opened.asked():
            raise InputError(
                f"nothing was deferred in the {plural(len(opened.cases), 'case')} of {opened.folder}, nothing to "
                "review. Predict or route with a larger budget or capacity"
            )
        listed = Worklist.open(Path(worklist), opened) if worklist else None
        if listed and not listed.rows:
            raise InputError(
                f"no region is listed in {listed.folder}, nothing to review. Write a list with a larger -max_regions "
                "or -max_minutes"
            )
        readers = 1 if rules is None else 2
        study = Study(opened, Path(images), Path(references) if references else None, listed, readers)
        if listed:  # is checked before anything is written
            study.read_first()
        store = ReviewStore(Path(output_folder), opened.files.file_ending)
        try:
            served = Review(study, store, Blinding(show_scores=show_scores, blind_start=blind_start), rules)
            served.check_begun()
            access = Access(
                store.hidden,
                served.people,
                address,
                valid_days=operation.valid_days,
                revoked=operation.revoked,
            )
            app = create_app(served, access, operation.access_log)
            print(f"{_summary(study)}\nPersonal links; anyone who has a link can answer in that person's name:\n")
            links = access.links()
            width = max(len(person.name) for person, _ in links)
            for person, link in links:
                expires = access.expires(person)
                until = "" if expires is None else f"  (until {expires:%Y-%m-%d %H:%M} UTC)"
                print(f"  {person.name:{width}}  {link}{until}")
            print("\nPress Ctrl+C to stop. Saved answers are kept.", flush=True)
            serve(app, listening, lambda runs: study.read(study.waiting, wanted=runs), proxy=operation.proxy)
        finally:
            store.close()


def _summary(study: Study) -> str:
    lines = _cases(study)
    if remark := remark_on_simulated(names_of(study.predictions.settings.profiles)):
        lines.append(remark)
    return "\n".join(lines)


def _cases(study: Study) -> list[str]:
    if study.worklist is None:
        cases = len(study.predictions.cases)
        been = "it has" if cases == 1 else "they have"
        return [f"{plural(cases, 'case')}, which can be reviewed as soon as {been} been read."]
    infos = study.infos.values()
    asked, regions = sum(any(info.voxels) for info in infos), sum(sum(info.regions) for info in infos)
    found = f"{plural(regions, 'region')} of {plural(asked, 'case')}"
    lines = [f"{plural(len(infos), 'case')}, {found} listed in {study.worklist.folder}."]
    for place, expert in enumerate(study.experts):
        if not any(info.voxels[place] for info in infos):
            lines.append(f"Nothing is listed for {expert}.")
    if study.predictions.files.label_manager.ignore_label is None:
        lines.append("The dataset has no ignore label: unlisted voxels count as answered, with the model's label.")
    return lines


def _check_folders(inputs: Sequence[Path], output: Path) -> None:
    for folder in inputs:
        if not folder.is_dir():
            raise InputError(f"the folder {folder} does not exist")
        ours, theirs = output.resolve(), folder.resolve()
        if ours.is_relative_to(theirs) or theirs.is_relative_to(ours):
            raise InputError(f"the output folder {output} overlaps the input folder {folder}; choose another one (-o)")


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point; invalid input gives one line on stderr and exit code 2, Ctrl+C while reading the maps 130."""
    parser = parsers.review()
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s: %(message)s")
    if options.readers_per_region == 1 and options.adjudicator is not None:
        parser.error("-adjudicator requires two readers (-readers_per_region 2)")
    try:
        rules = None
        if options.readers_per_region == 2:
            rules = ReadingRules(
                adjudicator=options.adjudicator, max_difference=options.max_difference, measure=options.difference
            )
        review(
            options.i,
            options.images,
            options.o,
            references=options.ref,
            worklist=options.worklist,
            rules=rules,
            dataset_json=options.djfile,
            port=options.port,
            operation=Operation(
                public_url=options.public_url,
                proxy=options.proxy,
                valid_days=options.valid_days,
                revoked=tuple(options.revoke),
                access_log=options.access_log,
            ),
            show_scores=options.show_scores,
            blind_start=options.blind_start,
        )
    except ModuleNotFoundError as error:
        if error.name not in EXTRA:
            raise
        parser.error(f"{error}; install it with: pip install 'nnunetv2-deferral[review]'")
    except InputError as error:
        parser.error(str(error))
    except KeyboardInterrupt:  # before the server started, which stops by itself
        parser.exit(130, "\nStopped.\n")
