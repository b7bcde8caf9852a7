"""Real proxies in front of a review: nginx and Caddy, with a certificate of their own, below the path /lung/."""

import contextlib
import shutil
import socket
import subprocess
from pathlib import Path

import pytest
from waiting import wait_for

NGINX = """
daemon off;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{}}
http {{
  access_log off;
  client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
  server {{
    listen 127.0.0.1:{public} ssl;
    ssl_certificate {folder}/cert.pem;
    ssl_certificate_key {folder}/key.pem;
    client_max_body_size 256m;
    location /lung/ {{
      proxy_pass http://127.0.0.1:{port}/;
      proxy_set_header Host $http_host;
      proxy_set_header X-Forwarded-For $remote_addr;
    }}
  }}
}}
"""
CADDY = """
{{
  admin off
  auto_https off
  storage file_system {folder}
}}
https://localhost:{public} {{
  tls {folder}/cert.pem {folder}/key.pem
  handle_path /lung/* {{
    reverse_proxy 127.0.0.1:{port}
  }}
}}
"""
COMMANDS = {
    "nginx": (NGINX, ("-e", "{folder}/error.log", "-c", "{folder}/nginx.conf", "-p", "{folder}")),
    "caddy": (CADDY, ("run", "--adapter", "caddyfile", "--config", "{folder}/caddy.conf")),
}


@contextlib.contextmanager
def proxied(name: str, folder: Path, port: int):
    """Start a proxy in front of a port of this machine; gives the address that it serves."""
    program = shutil.which(name) or shutil.which(name, path="/usr/sbin")
    if program is None or shutil.which("openssl") is None:
        pytest.skip(f"{name} or openssl is not installed")
    folder.mkdir()
    certificate = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    certificate += ["-keyout", str(folder / "key.pem"), "-out", str(folder / "cert.pem")]
    subprocess.run([*certificate, "-addext", "subjectAltName=DNS:localhost"], check=True, capture_output=True)
    with socket.create_server(("127.0.0.1", 0)) as probe:
        public = probe.getsockname()[1]
    text, arguments = COMMANDS[name]
    (folder / f"{name}.conf").write_text(text.format(folder=folder, public=public, port=port))
    process = subprocess.Popen([program, *(each.format(folder=folder) for each in arguments)])

    def listens():
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", public), timeout=1):
            return True
        return False

    try:
        wait_for(listens, alive=lambda: process.poll() is None)
        yield f"https://localhost:{public}/lung/"
    finally:
        process.terminate()
        process.wait()
