"""One process at a time in a folder, files written whole, tables that come back as they were, one sentence for all."""
import errno
import json
import os
import random
import signal
import subprocess
import sys
import tokenize
import zlib
from pathlib import Path

import pandas as pd
import pytest

from tumorseg import core
from tumorseg.core import (
    InputError,
    only_one,
    printable,
    read_json,
    read_table,
    reading,
    save_json,
    save_table,
    sweep,
    write_whole,
)

ROUNDS = """
import sys
from tumorseg.core import InputError, only_one
print("ready", flush=True)
for folder in map(str.strip, sys.stdin): # each line is a round
    try:
        with only_one(folder):
            print("at work", flush=True)
            sys.stdin.readline() # until it is told to end
    except InputError as error:
        print(error, flush=True)
        sys.stdin.readline()
    print("left", flush=True)
"""


class Child:
    "A process that takes a folder when it is told to."
    def __init__(self, **environment):
        self.process = subprocess.Popen([sys.executable, "-c", ROUNDS], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        text=True, env=os.environ | environment)
        assert self.hear() == "ready"

    def hear(self): return self.process.stdout.readline().strip()

    def tell(self, line):
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()

    def kill(self):
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def children():
    made = [Child(), Child()]
    yield made
    for child in made: child.kill()


def test_of_two_at_the_same_moment_one_works_and_the_other_says_so(children, tmp_path):
    for number in range(20):
        folder = tmp_path / str(number)
        for child in children: child.tell(folder)
        heard = [child.hear() for child in children]
        assert sorted(said == "at work" for said in heard) == [False, True], heard
        holder = children[heard.index("at work")].process.pid
        refused = next(said for said in heard if said != "at work")
        assert f"{folder}: another process (PID {holder} on {os.uname().nodename}, since 20" in refused
        for child in children: child.tell("")
        assert [child.hear() for child in children] == ["left", "left"]
        assert not folder.exists() or not list(folder.iterdir())


def test_a_killed_holder_frees_its_folder_and_leaves_nothing(children, tmp_path):
    folder = tmp_path / "new" / "run"
    children[0].tell(folder)
    assert children[0].hear() == "at work"
    with pytest.raises(InputError, match="another process"), only_one(folder): pass
    (folder / ".tumorseg-0123abcd.tmp").write_bytes(b"half")
    os.kill(children[0].process.pid, signal.SIGKILL)
    children[0].process.wait()
    with only_one(folder), only_one(str(folder)): # the same process may take it again
        assert sorted(path.name for path in folder.iterdir()) == [".at-work", ".lock"]
        children[1].tell(folder)
        assert f"PID {os.getpid()} on" in children[1].hear()
    assert not list(folder.iterdir())


def test_one_folder_under_two_names(children, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "link").symlink_to("run")
    with only_one(tmp_path / "run"):
        children[0].tell(tmp_path / "link")
        assert "another process" in children[0].hear()


def test_one_of_several_processes_takes_it_for_all(tmp_path):
    other = Child(RANK="1")
    with only_one(tmp_path / "run"):
        other.tell(tmp_path / "run")
        assert other.hear() == "at work"
    other.kill()


def test_a_fork_of_the_holder_is_somebody_else(tmp_path):
    with only_one(tmp_path / "run"):
        child = os.fork()
        if not child: # no return from here into pytest
            try:
                with only_one(tmp_path / "run"): os._exit(1)
            except InputError: os._exit(0)
            os._exit(2)
        assert os.waitpid(child, 0)[1] == 0
    assert not (tmp_path / "run").exists()


def test_an_empty_folder_that_was_there_before_stays(tmp_path):
    with only_one(tmp_path / "new/run"): pass
    assert not (tmp_path / "new").exists() and tmp_path.exists()
    with only_one(tmp_path / "new/run"): (tmp_path / "new/run/note.txt").write_text("x")
    assert [path.name for path in (tmp_path / "new/run").iterdir()] == ["note.txt"]


def test_a_folder_that_cannot_be_written_needs_no_lock(tmp_path, monkeypatch):
    monkeypatch.setattr(core.os, "access", lambda path, mode: False)
    monkeypatch.setattr(core, "_lock", lambda folder: pytest.fail("written into"))
    with only_one(tmp_path): assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_does_without_and_says_so_once(tmp_path, monkeypatch, capsys, number):
    fcntl = pytest.importorskip("fcntl")
    def flock(*_): raise OSError(number, os.strerror(number))
    monkeypatch.setattr(fcntl, "flock", flock)
    for _ in range(2):
        with only_one(tmp_path): assert not list(tmp_path.iterdir())
    assert capsys.readouterr().err.count("no locks") == 1


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="file/run: cannot be written"), only_one(tmp_path / "file/run"): pass


# ---- files written whole

def test_what_fails_on_a_read_only_disk_is_said_and_not_what_fails_after_it(tmp_path, monkeypatch):
    def refuse(*_, **__): raise OSError(errno.EROFS, "Read-only file system")
    monkeypatch.setattr("builtins.open", refuse)
    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(InputError, match="note.txt: cannot be written .Read-only file system.. Choose another folder"):
        write_whole(tmp_path / "note.txt", b"x")


@pytest.mark.parametrize("name", ["x" * 255, "腫" * 85])
def test_a_long_name_is_written(tmp_path, name):
    write_whole(tmp_path / name, b"x")
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("name", ["x" * 256, "a\0b", "a\ud800b"])
def test_a_name_that_no_file_can_have_is_one_sentence(tmp_path, name):
    with pytest.raises(InputError, match="cannot be written.*Choose a"): write_whole(tmp_path / name, b"x")


def test_a_file_keeps_its_mode(tmp_path):
    write_whole(tmp_path / "note.txt", b"first")
    (tmp_path / "note.txt").chmod(0o640)
    write_whole(tmp_path / "note.txt", b"second")
    assert (tmp_path / "note.txt").stat().st_mode & 0o777 == 0o640


def test_sweep_takes_what_is_ours_and_nothing_else(tmp_path):
    ours, others = ".tumorseg-0123abcd.tmp", [".notes.2024-05.txt", ".tumorseg-notes.tmp", ".tumorseg-0123ABCD.tmp"]
    for name in (ours, *others): (tmp_path / name).write_text("x")
    (tmp_path / ".tumorseg-0123abce.tmp").mkdir()
    (tmp_path / ".tumorseg-0123abcf.tmp").symlink_to(others[0])
    sweep(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {*others, ".tumorseg-0123abce.tmp", ".tumorseg-0123abcf.tmp"}


def test_no_number_of_json_is_nan(tmp_path):
    save_json(tmp_path / "a.json", {"mean": float("nan"), "rows": [{"p": float("inf")}, (1., float("nan"))]})
    assert (tmp_path / "a.json").read_text().count("null") == 3
    assert read_json(tmp_path / "a.json", "scores") == {"mean": None, "rows": [{"p": None}, [1., None]]}
    (tmp_path / "a.json").write_text('{"mean": NaN, "size": -Infinity}')
    assert read_json(tmp_path / "a.json", "scores") == {"mean": None, "size": None}


# ---- tables

def test_any_text_comes_back_as_it_was(tmp_path):
    chance, letters = random.Random(0), [*"=+-@\t\r\n'\",; aé腫\u2028\x0b\x85\ufeff#\\"]
    for _ in range(300):
        names = ["".join(chance.choices(letters, k=chance.randrange(6))) for _ in range(3)]
        save_table(tmp_path / "a.csv", pd.DataFrame({"name": names, "patient": names[::-1], "dice": [.5, -2, 1e-3]}))
        table = read_table(tmp_path / "a.csv", dtype={"name": str, "patient": str})
        assert table["name"].tolist() == names and table["patient"].tolist() == names[::-1]
        assert table["dice"].tolist() == [.5, -2, 1e-3]


def test_no_cell_is_a_formula(tmp_path):
    names = ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "'=1", "plain"]
    save_table(tmp_path / "a.csv", pd.DataFrame({"name": names, "number": -1}))
    cells = pd.read_csv(tmp_path / "a.csv", dtype=str)
    assert not cells["name"].str.contains(r"^[=+\-@\t\r]").any()
    assert set(cells["number"]) == {"-1"}, "a number is no formula"


def test_a_name_that_is_no_text_is_one_sentence(tmp_path):
    with pytest.raises(InputError, match=r"a.csv: \\udcfc is in no alphabet"):
        save_table(tmp_path / "a.csv", pd.DataFrame({"name": ["t\udcfcmor.png"]}))
    assert not list(tmp_path.iterdir())


# ---- one sentence

THROWN = [OverflowError("cannot convert float infinity to integer"), RecursionError("maximum recursion depth"),
          tokenize.TokenError("EOF in multi-line statement", (1, 0)), UnicodeDecodeError("utf-8", b"\xfc", 0, 1, "bad"),
          zlib.error("invalid block"), KeyError("config"), TypeError("None"), AssertionError(), MemoryError(),
          PermissionError(13, "Permission denied"), EOFError("cut off"), StopIteration(), SystemError("in C")]


@pytest.mark.parametrize("error", THROWN, ids=lambda error: type(error).__name__)
def test_whatever_a_parser_throws_becomes_one_sentence(error):
    with pytest.raises(InputError, match=r"scan.mat: .+ \(?.*\. ") as found, reading("scan.mat", "a scan", "Copy it."):
        raise error
    assert len(found.value.problems) == 1 and "\n" not in str(found.value)


@pytest.mark.parametrize("error", [InputError("clear"), KeyboardInterrupt("stopped"), SystemExit(1)])
def test_what_is_clear_already_passes(error):
    with pytest.raises(type(error)) as found, reading("scan.mat", "a scan"): raise error
    assert found.value is error


HOSTILE = [b"[" * 200_000, b'{"a": ' * 200_000, b'{"size": 1' + b"0" * 5000 + b"}", b"\xef\xbb\xbf", b"\xff\xfe"]


@pytest.mark.parametrize("content", HOSTILE, ids=lambda content: content[:6].hex())
def test_hostile_json_is_one_sentence(tmp_path, content):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(InputError, match="a.json: is not JSON"): read_json(tmp_path / "a.json", "scores")


def test_a_message_moves_no_cursor():
    error = InputError("a\x1b]0;title\x07\x9b2J\n\u202egnp.exe: \udcfc not found.", "Größe 腫瘍 a\u3000b\xa0c.png")
    assert str(error).splitlines() == [r"a\x1b]0;title\x07\x9b2J\n\u202egnp.exe: \udcfc not found.",
                                       "Größe 腫瘍 a\u3000b\xa0c.png"]
    assert json.loads(json.dumps(str(error))) == str(error) and str(error).encode()
    assert printable("") == "" and printable("scan_12.jpg") == "scan_12.jpg"
