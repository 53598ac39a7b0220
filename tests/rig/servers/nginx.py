"""nginx with the rule of compose/proxy/nginx.conf."""

import http.client
import re
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from compose.launcher import broker, flower_processes
from compose.launcher.certificates import make_certificates
from tests.rig.processes.running import serving

RULE = Path(__file__).parents[3] / "compose" / "proxy" / "nginx.conf"


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
    """The rule as it is but for names of files and ports."""
    tls = make_certificates(folder)
    [port] = broker.free_ports(1)
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
    argv = [program, "-e", folder / "error.log", "-c", main]
    with serving(argv, folder / "nginx.log", lambda: answers(port, tls.ca)):
        yield Proxy(port, tls.ca)


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
