"""What the journal of a run keeps, and when it does not."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

import zmrs.io.journal
from child import tree
from zmrs.errors import OutputError
from zmrs.io.journal import Journal, differences

JOB = {"options": {"kernel": "bilinear"}, "inputs": {"a.fits": [1, 2], "b.fits": [3, 4]}}


class StopError(Exception):
    """What interrupts a run."""


@contextmanager
def stopped(out: Path, scratch: Path | None = None, *, after_s: float = 0.0) -> Iterator[Journal]:
    """A run that is stopped at the end of the block."""
    with suppress(StopError), Journal(out, scratch, after_s=after_s, resumes=True) as journal:
        yield journal
        raise StopError


def interrupted(out: Path, *, after_s: float = 0.0, job: Any = JOB, **notes: Any) -> None:
    """A run that is stopped once it has noted these."""
    with stopped(out, after_s=after_s) as journal:
        journal.open(None if job is None else lambda: job)
        for name, what in notes.items():
            file = journal.scratch(name)
            file.write_bytes(b"data")
            journal.note(name, what, [file])


def found(out: Path, *names: str, job: Any = JOB, resumes: bool = True) -> list[Any]:
    """What the next run finds; it ends well."""
    with Journal(out, None, after_s=0.0, resumes=resumes) as journal:
        journal.open(lambda: job)
        return [journal.found(name) for name in names]


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out.fits"


def test_what_was_noted_is_found(out: Path) -> None:
    interrupted(out, one={"rows": 5}, two={"sum": 0.1 + 0.2})
    assert tree(out.parent) == {
        f"out.fits.zmrs-state{name}" for name in ("", "/journal", "/lock", "/one", "/two")
    }
    assert found(out, "one", "two", "three") == [{"rows": 5}, {"sum": 0.1 + 0.2}, None]
    assert tree(out.parent) == set()


def test_the_last_note_of_a_name_counts(out: Path) -> None:
    with stopped(out) as journal:
        journal.open(lambda: JOB)
        for rows in (1, 2, 3):
            journal.note("pass", {"rows": rows})
    assert found(out, "pass") == [{"rows": 3}]


def test_files_of_a_superseded_note_may_go(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the journal begins, and after."""
    now = 0.0
    monkeypatch.setattr(zmrs.io.journal.time, "monotonic", lambda: now)
    with stopped(out, after_s=30.0) as journal:
        journal.open(lambda: JOB)
        for rows in (1, 2, 3, 4):
            now += 14.0
            file = journal.scratch(f"marks-{rows}")
            file.touch()
            journal.note("pass", {"rows": rows}, [file])
            journal.scratch(f"marks-{rows - 1}").unlink(missing_ok=True)
    assert found(out, "pass") == [{"rows": 4}]


def test_a_run_gone_on_with_may_be_interrupted_again(out: Path) -> None:
    interrupted(out, one={"rows": 5})
    interrupted(out, two={"rows": 6})
    assert found(out, "one", "two") == [{"rows": 5}, {"rows": 6}]


def test_short_runs_leave_nothing(out: Path) -> None:
    interrupted(out, after_s=60.0, one={"rows": 5})
    assert tree(out.parent) == set()


def test_what_was_done_before_the_journal_begins_is_noted_with_it(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr(zmrs.io.journal.time, "monotonic", lambda: now)
    with stopped(out, after_s=30.0) as journal:
        journal.open(lambda: JOB)
        journal.note("early", {"rows": 1})
        now = 129.0
        assert not journal.is_due()
        now = 131.0
        assert journal.is_due()
        assert not (journal.folder / "journal").exists()
        journal.note("late", {"rows": 2})
        assert not journal.is_due()
        now = 162.0
        assert journal.is_due()
    assert found(out, "early", "late") == [{"rows": 1}, {"rows": 2}]


def test_another_job_starts_anew_and_says_why(out: Path, caplog: pytest.LogCaptureFixture) -> None:
    interrupted(out, one={"rows": 5})
    job = JOB | {"options": {"kernel": "lanczos3"}}
    assert found(out, "one", job=job) == [None]
    assert "starting anew: this is another job: options: kernel was bilinear, is lanczos3" in (
        caplog.text
    )


def test_a_run_may_refuse_to_go_on(out: Path) -> None:
    interrupted(out, one={"rows": 5})
    assert found(out, "one", resumes=False) == [None]
    interrupted(out, job=None, one={"rows": 5})
    assert tree(out.parent) == set()


def test_what_is_gone_or_cut_short_is_not_gone_on_with(
    out: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for harm in (Path.unlink, lambda file: file.write_bytes(b"dat")):
        interrupted(out, one={"rows": 5})
        harm(out.with_name("out.fits.zmrs-state") / "one")
        assert found(out, "one") == [None]
        assert "which the interrupted run has made, is gone" in caplog.text
        caplog.clear()


@pytest.mark.parametrize("cut", [2, 30, 60])
def test_half_a_line_is_none(cut: int, out: Path) -> None:
    """A power cut may leave it."""
    interrupted(out, one={"rows": 5}, two={"rows": 6, "more": list(range(30))})
    journal = out.with_name("out.fits.zmrs-state") / "journal"
    journal.write_bytes(journal.read_bytes()[:-cut])
    assert found(out, "one", "two") == [{"rows": 5}, None]


def test_an_unreadable_journal_is_cleared(out: Path, caplog: pytest.LogCaptureFixture) -> None:
    interrupted(out, one={"rows": 5})
    journal = out.with_name("out.fits.zmrs-state") / "journal"
    journal.write_bytes(b"\x00" * 200)
    assert found(out, "one") == [None]
    assert "cannot be read" in caplog.text
    assert tree(out.parent) == set()


def test_one_run_at_a_time(out: Path) -> None:
    with Journal(out, None, after_s=0.0, resumes=True) as journal:
        journal.open(lambda: JOB)
        journal.note("one", {})
        with (
            pytest.raises(OutputError, match="another run is making it"),
            Journal(out, None, after_s=0.0, resumes=True),
        ):
            pass
        assert (journal.folder / "journal").exists()


def test_scratch_elsewhere(out: Path, tmp_path: Path) -> None:
    place = tmp_path / "scratch"
    place.mkdir()
    with stopped(out, place) as journal:
        journal.open(lambda: JOB)
        file = journal.scratch("one")
        file.touch()
        journal.note("one", {"rows": 1}, [file])
    assert len(list(place.glob(".out.fits-*.zmrs-scratch/one"))) == 1
    with Journal(out, place, after_s=0.0, resumes=True) as journal:
        journal.open(lambda: JOB)
        assert journal.found("one") == {"rows": 1}
    assert tree(tmp_path) == {"scratch"}


def test_differences() -> None:
    assert differences(JOB, JOB) == ""
    assert differences(JOB, JOB | {"version": "2"}) == "version was None, is 2"
    less = JOB | {"inputs": {"a.fits": [1, 2]}}
    assert differences(JOB, less) == "inputs: b.fits is gone"
    assert differences(less, JOB) == "inputs: b.fits is new"
    turned = JOB | {"inputs": dict(reversed(JOB["inputs"].items()))}
    assert differences(JOB, turned) == "inputs: another order"
    other = JOB | {"inputs": {"a.fits": [1, 2], "b.fits": [3, 5]}}
    assert differences(JOB, other) == "inputs: b.fits was [3, 4], is [3, 5]"


def test_files_in_use_stay_when_others_are_cleared(out: Path, tmp_path: Path) -> None:
    """What is made before the journal is opened, as exact coordinates are, is needed after it."""
    for scratch in (None, tmp_path / "scratch"):
        if scratch is not None:
            scratch.mkdir()
        interrupted(out, one={"rows": 5})
        with Journal(out, scratch, after_s=0.0, resumes=True) as journal:
            file = journal.scratch("coordinates-1")
            file.write_bytes(b"data")
            journal.open(lambda: JOB | {"version": "2"})
            assert file.read_bytes() == b"data"
            assert not (journal.folder / "one").exists()
        assert tree(tmp_path) - {"scratch"} == set()


def test_another_scratch_folder_starts_anew(
    out: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What lies in it may be of another job."""
    one, other = tmp_path / "one", tmp_path / "other"
    for place in (one, other):
        place.mkdir()
    for before, now in ((None, other), (one, other), (one, None)):
        with stopped(out, before) as journal:
            journal.open(lambda: JOB)
            file = journal.scratch("tile")
            file.write_bytes(b"data")
            journal.note("tile", {"rows": 1}, [file])
        with Journal(out, now, after_s=0.0, resumes=True) as journal:
            journal.open(lambda: JOB)
            assert journal.found("tile") is None
        assert "starting anew: the scratch of the interrupted run is" in caplog.text
        caplog.clear()
        assert tree(tmp_path) == {"one", "other"}


def test_a_run_is_gone_on_with_from_another_folder(
    out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    interrupted(Path(out.name), one={"rows": 5})
    monkeypatch.chdir("/")
    assert found(out, "one") == [{"rows": 5}]
