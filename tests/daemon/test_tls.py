"""The TCP listener with TLS: who shows a certificate that we trust may do everything, who shows none gets nothing."""

from __future__ import annotations

import http.client
import shutil
import ssl
import subprocess
from pathlib import Path

import pytest

from daemon.rig import controller, listening
from kuproxy.daemon.api.server import bind_tcp, tls_context
from kuproxy.errors import ConfigError


def openssl(directory: Path, line: str) -> None:
    subprocess.run(["openssl", *line.split()], cwd=directory, check=True, capture_output=True, timeout=60)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two authorities; the server's and one client's certificate are of the first, another client's of the second."""
    if shutil.which("openssl") is None:
        pytest.skip("no program `openssl`")
    directory = tmp_path_factory.mktemp("certificates")
    key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2"
    for name in ("ca", "other"):
        openssl(directory, f"req -x509 {key} -subj /CN={name} -keyout {name}.key -out {name}.pem")
    for name, authority in (("server", "ca"), ("client", "ca"), ("stranger", "other")):
        openssl(directory, f"req {key} -subj /CN={name} -keyout {name}.key -out {name}.csr")
        signed = f"-CA {authority}.pem -CAkey {authority}.key -CAcreateserial -days 2"
        openssl(directory, f"x509 -req -in {name}.csr {signed} -out {name}.pem")
    return directory


def ask(port: int, directory: Path, name: str) -> int:
    """The status of a change that a client asks for.  Raises OSError or HTTPException when it is not let in."""
    context = ssl.create_default_context(cafile=str(directory / "ca.pem"))
    context.check_hostname = False
    if name:
        context.load_cert_chain(directory / f"{name}.pem", directory / f"{name}.key")
    connection = http.client.HTTPSConnection("127.0.0.1", port, timeout=10, context=context)
    try:
        headers = {"Content-Type": "application/json"}
        connection.request("POST", "/v1/ku", b'{"lines": "ku vip 90.0.0.0/8"}', headers)
        return connection.getresponse().status
    finally:
        connection.close()


def test_a_client_certificate_is_what_lets_in(certificates: Path) -> None:
    made = controller()
    files = [str(certificates / name) for name in ("server.pem", "server.key", "ca.pem")]
    opened = bind_tcp("127.0.0.1", 0, "tcp")
    with listening(made, opened, context=tls_context(*files)):
        port = opened.getsockname()[1]
        for name in ("", "stranger"):
            with pytest.raises((OSError, http.client.HTTPException)):
                ask(port, certificates, name)
        assert len(made.plane.store) == 0
        assert ask(port, certificates, "client") == 200
        assert len(made.plane.store) == 1


def test_certificates_that_cannot_be_used_are_refused(certificates: Path) -> None:
    with pytest.raises(ConfigError, match="certificate, key or client_ca"):
        tls_context(str(certificates / "server.pem"), str(certificates / "client.key"), "")
