import pytest

from harvest_nb.snapshot.image import _instruction


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
