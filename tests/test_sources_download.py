"The figshare download against a stand-in server that misbehaves in every way a real one does."
import hashlib
import http.server
import io
import json
import threading
import zipfile

import pytest

import tumorseg as ts
from tumorseg.data.download import _MAX_FILE, download_article, unpack


def zipped(files):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files.items(): archive.writestr(name, content)
    return buffer.getvalue()


SLICES = zipped({f"set/{n}.mat": bytes([n]) * 100_000 for n in (1, 2, 3)} | {"set/readme.txt": b"-"})


def content_range(start, size): return {"Content-Range": f"bytes {start}-{size - 1}/{size}"} if start else {}


class Figshare:
    "One article of one archive. `answer` is called for each request of it: the handler, the first byte asked for."
    def __init__(self, answer=None, name="slices.zip", content=SLICES, md5=None, listing=None):
        self.ranges, self.answer, outer = [], answer, self
        md5 = md5 or hashlib.md5(content).hexdigest()
        files = [dict(id=7, name=name, size=len(content), computed_md5=md5, supplied_md5="")]
        listed = json.dumps(files).encode() if listing is None else listing

        class Handler(http.server.BaseHTTPRequestHandler):
            def log_message(self, *_): pass

            def do_GET(self):
                if self.path == "/articles/5/files": return self.reply(200, listed)
                if self.path != "/file/download/7": return self.reply(404, b"")
                start = int((self.headers["Range"] or "bytes=0-")[6:-1])
                outer.ranges.append(start)
                if outer.answer: return outer.answer(self, start)
                self.rest(start)

            def rest(self, start, most=None):
                "The rest of the archive is announced, and all of it or the first `most` bytes of it are sent."
                rest = content[start:]
                self.reply(206 if start else 200, rest[:most], content_range(start, len(content)), length=len(rest))

            def reply(self, status, body, headers=None, length=None):
                self.send_response(status)
                for key, value in {**(headers or {}), "Content-Length": length or len(body)}.items():
                    self.send_header(key, str(value))
                self.end_headers()
                self.wfile.write(body)

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def __enter__(self): return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()

    def fetch(self, to): return download_article(5, to, f"http://127.0.0.1:{self.server.server_port}")


def names(folder): return sorted(path.name for path in folder.iterdir())


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch): monkeypatch.setattr("pooch.core.time.sleep", lambda _: None)  # between attempts


def test_whole_then_nothing_more(tmp_path):
    with Figshare() as figshare:
        assert names(figshare.fetch(tmp_path / "a/b")) == ["1.mat", "2.mat", "3.mat", "fetched.json"]
        assert (tmp_path / "a/b/2.mat").read_bytes() == b"\x02" * 100_000
        figshare.fetch(tmp_path / "a/b")
        assert figshare.ranges == [0]


def test_goes_on_where_it_stopped(tmp_path):
    (tmp_path / "slices.zip.part").write_bytes(SLICES[:1000])
    with Figshare() as figshare:
        assert "3.mat" in names(figshare.fetch(tmp_path)) and figshare.ranges == [1000]


def test_a_broken_connection_is_taken_up_again(tmp_path):
    third = len(SLICES) // 3 + 1  # then silence; three times that is all of it
    with Figshare(lambda handler, start: handler.rest(start, third)) as figshare:
        assert "3.mat" in names(figshare.fetch(tmp_path))
        assert len(figshare.ranges) in (3, 4) and figshare.ranges == sorted(figshare.ranges)
        assert figshare.ranges[1] > 90_000


def test_what_arrived_is_kept_when_the_server_goes_silent(tmp_path):
    with Figshare(lambda handler, start: handler.rest(start, 20_000)) as figshare:
        with pytest.raises(ts.InputError, match="the connection broke.*is kept: try again"): figshare.fetch(tmp_path)
    arrived = (tmp_path / "slices.zip.part").stat().st_size
    assert 5 * 16_000 < arrived < len(SLICES)
    with Figshare() as figshare: assert "3.mat" in names(figshare.fetch(tmp_path)) and figshare.ranges == [arrived]


def test_a_server_without_ranges_starts_anew(tmp_path):
    (tmp_path / "slices.zip.part").write_bytes(b"x" * 1000)
    with Figshare(lambda handler, start: handler.rest(0)) as figshare:
        assert (figshare.fetch(tmp_path) / "1.mat").read_bytes() == b"\x01" * 100_000


def test_a_range_that_is_refused_starts_anew(tmp_path):
    (tmp_path / "slices.zip.part").write_bytes(b"x" * 1000)
    with Figshare(lambda handler, start: handler.reply(416, b"") if start else handler.rest(0)) as figshare:
        assert "1.mat" in names(figshare.fetch(tmp_path)) and figshare.ranges == [1000, 0]


def test_a_server_that_is_busy_costs_nothing(tmp_path):
    (tmp_path / "slices.zip.part").write_bytes(SLICES[:1000])
    with Figshare(lambda handler, start: handler.reply(503, b"")) as figshare:
        with pytest.raises(ts.InputError, match="answered 503.*is kept"): figshare.fetch(tmp_path)
    assert (tmp_path / "slices.zip.part").read_bytes() == SLICES[:1000]


def test_the_checksum_is_looked_at(tmp_path):
    (tmp_path / "slices.zip.part").write_bytes(b"x" * 1000) # the rest fits, the start is another file's
    with Figshare() as figshare:
        assert "1.mat" in names(figshare.fetch(tmp_path)) and figshare.ranges == [1000, 0] # then from the beginning
    with Figshare(md5="0" * 32) as figshare:
        with pytest.raises(ts.InputError, match="MD5 hash.*does not match"): figshare.fetch(tmp_path / "wrong")
        assert names(tmp_path / "wrong") == []


def test_what_was_killed_before_the_last_step_is_not_downloaded_again(tmp_path):
    (tmp_path / "slices.zip.part").write_bytes(SLICES) # all of it, not yet checked
    (tmp_path / "b").mkdir()
    (tmp_path / "b/slices.zip").write_bytes(SLICES) # checked, not yet unpacked
    with Figshare() as figshare:
        assert names(figshare.fetch(tmp_path / "b"))[:3] == ["1.mat", "2.mat", "3.mat"]
        assert names(figshare.fetch(tmp_path))[:3] == ["1.mat", "2.mat", "3.mat"] and figshare.ranges == []


@pytest.mark.parametrize("status, words", [
    (202, "does not match"), # the empty page for programs
    (403, "answered 403"), (404, "answered 404"), (500, "answered 500"),
])
def test_an_answer_that_is_no_file(tmp_path, status, words):
    with Figshare(lambda handler, start: handler.reply(status, b"")) as figshare:
        with pytest.raises(ts.InputError, match=f"{words}.*by hand"): figshare.fetch(tmp_path)
    assert names(tmp_path) == []


def test_no_server(tmp_path):
    with pytest.raises(ts.InputError, match="no answer from the server"): download_article(5, tmp_path, "http://127.0.0.1:9")


def test_more_than_was_announced_is_not_taken(tmp_path):
    sent = []
    def endless(handler, start):
        handler.reply(200, SLICES[:100_000], length=10 ** 9)
        while len(sent) < 100:
            handler.wfile.write(b"x" * 1_000_000)
            sent.append(1)
    with Figshare(endless) as figshare, pytest.raises(ts.InputError): figshare.fetch(tmp_path)
    assert len(sent) < 60 and sum(path.stat().st_size for path in tmp_path.iterdir()) <= len(SLICES)


@pytest.mark.parametrize("listing", [b"<html>", b"{}", b"[1]", b'[{"name": "a.zip"}]', b"null",
                                     b'[{"id": 7, "name": "../a.zip", "size": 3, "computed_md5": "0"}]'])
def test_a_listing_that_is_none(tmp_path, listing):
    with Figshare(listing=listing) as figshare:
        if listing == b"{}": assert names(figshare.fetch(tmp_path)) == []
        else:
            with pytest.raises(ts.InputError, match="did not work"): figshare.fetch(tmp_path)
    assert not (tmp_path.parent / "a.zip").exists()


def test_an_archive_brought_by_hand_is_taken_and_left(tmp_path):
    (tmp_path / "slices.zip").write_bytes(SLICES)
    with Figshare() as figshare:
        assert names(figshare.fetch(tmp_path)) == ["1.mat", "2.mat", "3.mat", "fetched.json", "slices.zip"]
        assert figshare.ranges == []


@pytest.mark.parametrize("name", ["../1.mat", "/etc/1.mat", "a/../../1.mat", "C:\\1.mat", "..\\1.mat"])
def test_no_path_leaves_the_folder(tmp_path, name):
    (tmp_path / "to").mkdir()
    (tmp_path / "evil.zip").write_bytes(zipped({"2.mat": b"good", name: b"evil"}))
    with pytest.raises(ts.InputError, match="leaves the folder"): unpack(tmp_path / "evil.zip", tmp_path / "to")
    assert names(tmp_path / "to") == [] and names(tmp_path) == ["evil.zip", "to"]


def test_a_bomb_and_a_cut_archive(tmp_path):
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("1.mat", b"\0" * (_MAX_FILE + 1))
    assert (tmp_path / "bomb.zip").stat().st_size < _MAX_FILE / 500
    (tmp_path / "cut.zip").write_bytes(SLICES[:-30])
    (tmp_path / "out").mkdir()
    for name in ("bomb.zip", "cut.zip"):
        with pytest.raises(ts.InputError, match=name): unpack(tmp_path / name, tmp_path / "out")
    assert names(tmp_path / "out") == []
