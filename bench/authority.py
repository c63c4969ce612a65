# SPDX-License-Identifier: Apache-2.0
"""Certificates by which a card and a relay know each other, made as docs/remote.md says.

An authority lives in a folder; nothing is kept or renewed. For tests and measurements alone.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

CURVE = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")


def openssl(*arguments: object) -> None:
    subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)


class Authority:
    """Signs certificates."""

    def __init__(self, folder: Path, name: str = "ca") -> None:
        self.folder, self.name = folder, name
        self.certificate = folder / f"{name}.pem"
        self.key = folder / f"{name}.key"
        openssl(
            *("req", "-x509", *CURVE, "-days", 3650, "-subj", f"/CN={name}"),
            *("-keyout", self.key, "-out", self.certificate),
        )

    def sign(self, name: str, san: str = "", days: int = 365) -> dict[str, str]:
        """tls_cert, tls_key and tls_ca of a machine."""
        request, key = self.folder / f"{name}.csr", self.folder / f"{name}.key"
        extensions, out = self.folder / f"{name}.ext", self.folder / f"{name}.pem"
        extensions.write_text(f"subjectAltName=DNS:{name}{',' + san if san else ''}\n")
        openssl("req", *CURVE, "-subj", f"/CN={name}", "-keyout", key, "-out", request)
        openssl(
            *("x509", "-req", "-in", request, "-CA", self.certificate, "-CAkey", self.key),
            *("-CAcreateserial", "-days", days, "-extfile", extensions, "-out", out),
        )
        return {"tls_cert": str(out), "tls_key": str(key), "tls_ca": str(self.certificate)}
