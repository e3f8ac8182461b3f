# Copyright (c) 2026, muster.agents contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A certificate authority that openssl itself made, as an operator has one."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["Authority", "openssl"]

_CONFIG = """
[req]
distinguished_name = dn
[dn]
[root]
basicConstraints = critical,CA:TRUE
keyUsage = critical,keyCertSign,cRLSign
subjectKeyIdentifier = hash
[issuing]
basicConstraints = critical,CA:TRUE,pathlen:0
keyUsage = critical,keyCertSign,cRLSign
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
[guide]
keyUsage = keyEncipherment, dataEncipherment
extendedKeyUsage = clientAuth
[client]
keyUsage = digitalSignature
extendedKeyUsage = clientAuth
"""


def openssl(*arguments: str, stdin: str = "") -> str:
    """Run openssl and return what it printed. Fails with its words."""
    done = subprocess.run(["openssl", *arguments], input=stdin, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"openssl {' '.join(arguments)}: {done.stdout}{done.stderr}"
    return done.stdout


class Authority:
    """A root and an issuing CA below it with an encrypted key, in *directory*."""

    def __init__(self, directory: Path, passphrase: str, *, name: str = "Agents") -> None:
        self.directory = directory
        self._passphrase = passphrase
        (directory / "openssl.cnf").write_text(_CONFIG)
        self.root_file = directory / "root.pem"
        self.issuing_file = directory / "issuing.pem"
        self.file = directory / "chain.pem"
        self.key_file = directory / "issuing.key"
        self.records = directory / "records"
        self.passphrase_file = directory / "passphrase"
        self.passphrase_file.write_text(f"{passphrase}\n")
        config = str(directory / "openssl.cnf")
        openssl("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", str(directory / "root.key"), "-out",
                str(self.root_file), "-subj", f"/CN={name} root", "-days", "3650", "-config", config, "-extensions", "root")
        openssl("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-passout", f"file:{self.passphrase_file}", "-keyout", str(self.key_file),
                "-out", str(directory / "issuing.csr"), "-subj", f"/O=Example/CN={name} CA", "-config", config)
        openssl("x509", "-req", "-in", str(directory / "issuing.csr"), "-CA", str(self.root_file), "-CAkey", str(directory / "root.key"),
                "-CAcreateserial", "-days", "1800", "-out", str(self.issuing_file), "-extfile", config, "-extensions", "issuing")
        self.file.write_text(self.issuing_file.read_text() + self.root_file.read_text())

    def options(self) -> Mapping[str, Any]:
        """The options of cert_issue that name this CA."""
        own = {
            "certificate": str(self.file), "key": str(self.key_file), "passphrase_file": str(self.passphrase_file), "directory": str(self.records),
        }
        return {"issuer": "own_ca", "own_ca": own}

    def issued(self) -> list[str]:
        """The lines of the index that cert_issue keeps."""
        index = self.records / "index.txt"
        return index.read_text().splitlines() if index.exists() else []

    def by_hand(self, directory: Path, name: str, *, section: str = "client", days: int = 365) -> None:
        """Make agent.key and agent.crt in *directory* with openssl, as the guide of a control plane shows it, and the CA beside them."""
        directory.mkdir(parents=True, exist_ok=True)
        openssl("genrsa", "-out", str(directory / "agent.key"), "2048")
        openssl("req", "-new", "-key", str(directory / "agent.key"), "-out", str(directory / "agent.csr"), "-subj", f"/C=US/O=KubeAtlas/CN={name}",
                "-config", str(self.directory / "openssl.cnf"))
        openssl("x509", "-req", "-in", str(directory / "agent.csr"), "-CA", str(self.issuing_file), "-CAkey", str(self.key_file), "-passin",
                f"file:{self.passphrase_file}", "-CAcreateserial", "-out", str(directory / "agent.crt"), "-days", str(days), "-extensions", section,
                "-extfile", str(self.directory / "openssl.cnf"))
        (directory / "ca.crt").write_text(self.file.read_text())
        (directory / "agent.csr").unlink()
