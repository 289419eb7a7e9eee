from harvest_nb.snapshot.steps import BuildLog

STREAM = [
    "Step 1/5 : ARG BASE_IMAGE", "\n", "Step 2/5 : FROM ${BASE_IMAGE}", "\n", " ---> aaaaaaaaaaaa\n",
    "Step 3/5 : COPY a /a", "\n", " ---> Using cache\n", " ---> bbbbbbbbbbbb\n",
    "Step 4/5 : RUN work", "\n", " ---> Running in cccccccccccc\n",
]  # fmt: skip


def fed(*texts: str) -> BuildLog:
    log = BuildLog()
    for text in [*STREAM, *texts]:
        log.feed({"stream": text})
    return log


def test_what_is_cached_and_what_is_made():
    log = fed("out\n", "Removing intermediate container cccccccccccc\n", " ---> dddddddddddd\n")
    assert [step.cached for step in log.steps] == [None, True, True, False]
    assert log.made == ["dddddddddddd"]
    assert log.containers == ["cccccccccccc"]
    assert not log.wholly_cached


def test_lines_are_whole_however_the_stream_is_cut():
    log = BuildLog()
    shown = [line for text in [*STREAM, "one\ntw", "o\nthr", "ee"] for line in log.feed({"stream": text})]
    assert shown[-2:] == ["one", "two"]
    assert log.end() == ["three"]
    assert log.tail == ["one", "two", "three"]


def test_colours_and_overwritten_progress_are_not_shown():
    log = fed("\x1b[91mred\n\x1b[0m", "10%\r50%\r100%\n", "dos\r\n")
    assert log.tail == ["red", "100%", "dos"]


def test_output_without_a_line_end_does_not_swallow_the_next_step():
    log = fed(
        "no end", "Removing intermediate container cccccccccccc\n", " ---> dddddddddddd\n", "Step 5/5 : CMD x"
    )
    log.feed({"stream": "\n"})
    assert log.steps[3].tail[-1] == "no end"
    assert [step.number for step in log.steps] == [1, 2, 3, 4, 5]


def test_output_that_looks_like_a_step_is_output():
    log = fed("Step 1/9 : FROM other\n")
    assert len(log.steps) == 4
    assert log.tail == ["Step 1/9 : FROM other"]


def test_an_error_ends_it_and_the_tail_stays():
    log = fed("".join(f"{n}\n" for n in range(30)), "last words")
    assert log.feed({"error": "returned a non-zero code: 1", "errorDetail": {"code": 1}}) == [
        "returned a non-zero code: 1"
    ]
    assert log.error == "returned a non-zero code: 1"
    assert log.tail == [*(str(n) for n in range(11, 30)), "last words"]
    assert log.step is not None
    assert log.step.name == "Step 4/5: RUN work"


def test_the_result_is_the_last_image_named():
    log = fed()
    log.feed({"aux": {"ID": "sha256:one"}})
    log.feed({"aux": {"ID": "sha256:two"}})
    assert log.image == "sha256:two"
