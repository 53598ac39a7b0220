"""A reverse proxy that obeys compose/proxy/nginx.conf: nginx itself, or a stand-in that reads the
rule out of the same file, where there is no nginx."""

import http.client
import re
import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

from compose.launcher import flower_processes
from compose.security.certificates import Tls, make_certificates
from tests.federation.flower_stack import wait_for

RULE = Path(__file__).parents[2] / "compose" / "proxy" / "nginx.conf"


@dataclass(frozen=True)
class Proxy:
    """Where it listens, and the CA of the certificate that it shows."""

    port: int
    ca: Path


def allowed() -> re.Pattern[str]:
    """The one path pattern that the rule passes on; everything else is 403 by the rule."""
    text = RULE.read_text()
    assert re.search(r"location / \{\s*return 403;\s*\}", text)
    [pattern] = re.findall(r"location ~ (\S+) \{\s*limit_except POST \{ deny all; \}", text)
    assert text.count("location ") == 2
    return re.compile(pattern)


@contextmanager
def nginx(program: str, folder: Path, superlink: int, ca: Path) -> Iterator[Proxy]:
    """The real thing, with the rule as it is but for names of files and ports."""
    tls = make_certificates(folder)
    [port] = flower_processes.free_ports(1)
    rule = RULE.read_text()
    for old, new in {
        "127.0.0.1:8000": f"127.0.0.1:{superlink}",
        "listen 9093": f"listen 127.0.0.1:{port}",
        "/etc/tidewheel/proxy.pem": str(tls.certificate),
        "/etc/tidewheel/proxy.key": str(tls.key),
        "/etc/tidewheel/superlink-ca.pem": str(ca),
    }.items():
        assert old in rule
        rule = rule.replace(old, new)
    (folder / "rule.conf").write_text(rule)
    places = "".join(
        f"{kind}_temp_path {folder / kind};\n"
        for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    main = folder / "nginx.conf"
    main.write_text(
        f"daemon off;\nmaster_process off;\npid {folder}/pid;\nerror_log {folder}/error.log;\n"
        f"events {{}}\nhttp {{ access_log off;\n{places}include {folder}/rule.conf; }}\n"
    )
    process = subprocess.Popen([program, "-e", str(folder / "error.log"), "-c", str(main)])
    try:
        wait_for("nginx listens", lambda: answers(port, tls.ca), 20)
        yield Proxy(port, tls.ca)
    finally:
        process.terminate()
        process.wait(20)


def answers(port: int, ca: Path) -> bool:
    try:
        return ask(Proxy(port, ca), "GET", "/") == 403
    except OSError:
        return False


def ask(proxy: Proxy, method: str, path: str) -> int:
    """The status of a bare request."""
    context = ssl.create_default_context(cafile=proxy.ca)
    connection = http.client.HTTPSConnection(
        flower_processes.HOST, proxy.port, context=context, timeout=10
    )
    try:
        connection.request(method, path, b"" if method == "POST" else None)
        return connection.getresponse().status
    finally:
        connection.close()


@contextmanager
def stand_in(folder: Path, superlink: int, ca: Path) -> Iterator[Proxy]:
    """Passes on what the rule's pattern allows, compared after decoding as nginx does; it does not
    resolve dots, so that what nginx would turn into another path is just not among the allowed."""
    tls, pattern = make_certificates(folder), allowed()
    trusted = ssl.create_default_context(cafile=ca)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if not pattern.search(unquote(self.path.partition("?")[0])):
                self.reply(403, {}, b"")
                return
            there = http.client.HTTPSConnection(flower_processes.HOST, superlink, context=trusted)
            headers = {k: v for k, v in self.headers.items() if k.lower() != "connection"}
            try:
                there.request("POST", self.path, body, headers)
                answer = there.getresponse()
                self.reply(answer.status, dict(answer.getheaders()), answer.read())
            except OSError:
                self.reply(502, {}, b"")
            finally:
                there.close()

        def do_GET(self) -> None:
            self.reply(403, {}, b"")

        def reply(self, status: int, headers: dict[str, str], body: bytes) -> None:
            self.send_response(status)
            for name, value in headers.items():
                if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                    self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with secure_server(Handler, tls) as server:
        yield Proxy(server.server_address[1], tls.ca)


@contextmanager
def secure_server(handler: type[BaseHTTPRequestHandler], tls: Tls) -> Iterator[ThreadingHTTPServer]:
    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: object, client_address: object) -> None:
            pass  # a client that went away

    server = Server((flower_processes.HOST, 0), handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tls.certificate, tls.key)
    server.socket = context.wrap_socket(
        server.socket, server_side=True, do_handshake_on_connect=False
    )
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join(20)
        server.server_close()
