"""What is in an image, package by package: a frame, and a CycloneDX bill of materials."""

from __future__ import annotations

import json
import uuid
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
from cyclonedx.contrib.license.factories import LicenseFactory
from cyclonedx.model import Property
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.model.license import DisjunctiveLicense, LicenseExpression
from cyclonedx.output.json import JsonV1Dot6
from packageurl import PackageURL

from harvest_nb.engine import DockerClient, ImageNotFound, connect, engine_errors
from harvest_nb.errors import BuildError
from harvest_nb.snapshot.image import container_of

__all__ = ["COLUMNS", "Inventory", "inventory"]

COLUMNS = ("type", "name", "version", "licence", "architecture", "places", "purl")
"""`type` is `apt`, `npm` or `pip`; `licence` what the package says itself, several joined by `, `, missing where it
says nothing; `places` how many folders hold it (npm keeps a version in several)."""

_PROGRAM = Path(__file__).resolve().parent / "programs" / "packages.py"
_SPDX = LicenseFactory()


@dataclass(frozen=True, eq=False)
class Inventory:
    """The packages of one image.

    `image` is its id, `packages` the entries as `programs/packages.py` found them.
    """

    image: str
    packages: tuple[dict[str, Any], ...]

    def __repr__(self) -> str:
        counts = ", ".join(f"{count} {kind}" for kind, count in self.frame["type"].value_counts().items())
        return f"<Inventory of {self.image[:19]}: {counts}>"

    def __len__(self) -> int:
        return len(self.packages)

    @cached_property
    def frame(self) -> pd.DataFrame:
        """One row a package and version, columns as in `COLUMNS`."""
        rows = [
            (
                package["type"],
                package["name"],
                package["version"],
                ", ".join(package["licences"]) or None,
                package["architecture"] or None,
                max(1, len(package["places"])),
                _purl(package).to_string(),
            )
            for package in self.packages
        ]
        frame = pd.DataFrame(rows, columns=list(COLUMNS)).astype(
            dict.fromkeys(COLUMNS, "string") | {"places": "int64"}
        )
        return frame.sort_values(["type", "name", "version"], ignore_index=True)

    def cyclonedx(self) -> str:
        """The packages as CycloneDX 1.6 JSON. Serial number and order depend on the image alone."""
        bom = Bom(serial_number=uuid.uuid5(uuid.NAMESPACE_URL, self.image))
        bom.metadata.component = Component(
            name="harvest-daytona-snapshot",
            version=self.image,
            type=ComponentType.CONTAINER,
            bom_ref=self.image,
        )
        for package in self.packages:
            bom.components.add(_component(package))
        bom.register_dependency(bom.metadata.component, bom.components)
        document = json.loads(JsonV1Dot6(bom).output_as_string())
        # When it was written says nothing about the image, and would make every copy another one.
        document["metadata"].pop("timestamp", None)
        return json.dumps(document, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def inventory(image: str, client: DockerClient | None = None) -> Inventory:
    """All apt, npm and pip packages in `image`, read by a program in a container of it that has no network.

    Args:
        image: a tag or an id.
        client: the engine (default: the one that `harvest_nb.engine.connect` finds).

    Raises:
        BuildError: there is no such image, or the program cannot run in it.
        EngineError: the engine cannot be used.
    """
    if client is None:
        with closing(connect()) as own:
            return inventory(image, own)
    with engine_errors(f"taking the inventory of {image}"):
        try:
            ident = str(client.images.get(image).id)
        except ImageNotFound:
            raise BuildError(
                f"The engine has no image {image}",
                hint="make it: `harvest-nb build`",
                step="inventory",
                tail="",
            ) from None
        with container_of(
            client,
            ident,
            ["-I", "-c", _PROGRAM.read_text(encoding="utf-8")],
            entrypoint=["python3"],
            network_mode="none",
            cap_drop=["ALL"],
            security_opt=["no-new-privileges"],
            labels={"harvest.purpose": "inventory"},
        ) as container:
            container.start()
            code = container.wait()["StatusCode"]
            said = container.logs(stdout=True, stderr=False)
            tail = container.logs(stdout=False, stderr=True, tail=20).decode("utf-8", "replace")
    if code != 0:
        raise BuildError(
            f"The inventory of {image} cannot be taken (exit code {code}):\n{tail}",
            hint="is it a snapshot image? It needs Python 3 and dpkg-query",
            step="inventory",
            tail=tail,
        )
    return Inventory(ident, tuple(json.loads(said)))


def _purl(package: dict[str, Any]) -> PackageURL:
    name, version = package["name"], package["version"]
    if package["type"] == "apt":
        return PackageURL("deb", "debian", name, version, {"arch": package["architecture"]})
    if package["type"] == "npm":
        scope, _, short = name.rpartition("/")
        return PackageURL("npm", scope or None, short, version)
    return PackageURL("pypi", None, name.lower().replace("_", "-"), version)


def _component(package: dict[str, Any]) -> Component:
    purl = _purl(package)
    return Component(
        name=package["name"],
        version=package["version"],
        type=ComponentType.LIBRARY,
        bom_ref=purl.to_string(),
        purl=purl,
        licenses=_licences(package["licences"]),
        properties=[Property(name="harvest:place", value=place) for place in package["places"]],
    )


def _licences(said: list[str]) -> list[DisjunctiveLicense | LicenseExpression]:
    found = [_SPDX.make_from_string(one) for one in said]
    # The format has either one expression, or any number of single licences.
    if len(found) > 1:
        return [
            DisjunctiveLicense(name=one.value) if isinstance(one, LicenseExpression) else one for one in found
        ]
    return list(found)
