import re
import uuid
from typing import Any

import pytest

from harvest_nb.engine import DockerClient, ImageNotFound, NotFound
from harvest_nb.machine.held import held
from harvest_nb.snapshot import Snapshot
from harvest_nb.snapshot.image import _instruction, read_file


@pytest.mark.docker
def test_an_image_that_is_not_there_is_no_missing_file(engine: DockerClient) -> None:
    with pytest.raises(ImageNotFound):
        read_file(engine, f"harvest-none:{uuid.uuid4().hex}", "/etc/passwd")


@pytest.mark.parametrize(
    ("recorded", "shown"),
    [
        ('/bin/sh -c #(nop)  CMD ["node"]', 'CMD ["node"]'),
        ("/bin/sh -c #(nop) COPY dir:abc in /app/ ", "COPY dir:abc in /app/"),
        ("/bin/sh -c set -eu;     echo x", "RUN set -eu; echo x"),
        ("|1 BASE_IMAGE=x /bin/sh -c echo x", "RUN echo x"),
        ("", ""),
    ],
)
def test_history_is_shown_in_the_dockerfiles_words(recorded, shown):
    assert _instruction(recorded) == shown


@pytest.mark.docker
def test_the_container_that_a_file_is_read_from_is_named_as_long_as_it_is_there(
    snapshot_image: Snapshot, engine: DockerClient, monkeypatch: pytest.MonkeyPatch
):
    api: Any = engine.api
    get, names, others = api.get_archive, list[str](), held()

    def seen(container: str, path: str, *rest: object) -> object:
        (name,) = re.findall(r"harvest-look-\w+", " ".join(item.remove for item in held()))
        assert engine.containers.get(name).id == container
        names.append(name)
        return get(container, path, *rest)

    monkeypatch.setattr(api, "get_archive", seen)
    assert read_file(engine, snapshot_image.id, "/app/manifest.json")
    with pytest.raises(NotFound):
        engine.containers.get(names[0])
    assert held() == others
