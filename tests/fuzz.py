"""Damaged and hostile files by the thousand: each is refused in a sentence that names it, or gives a sane result.

    python tests/fuzz.py --cases 10000 --seed 1 --out results/fuzz.csv
    python tests/fuzz.py --target coco --case 17        # one case again, with its traceback; its files are kept

Each case damages one good file, in a forked child with limits of memory (2 GiB) and time (10 s of CPU), and ends as
clean (InputError that names the file), accepted (the result holds a check), unnamed (InputError without the file),
traceback (any other exception), nonsense (an absurd result), memory, signal, hang, or stray (a file was written where
none belongs). Only the first two are right. Linux only.
"""
import argparse
import copy
import csv
import faulthandler
import functools
import importlib
import io
import json
import os
import pickle
import pkgutil
import re
import resource
import shutil
import signal
import sqlite3
import struct
import sys
import tempfile
import time
import traceback
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from random import Random
from typing import NamedTuple

import h5py
import matplotlib
import numpy as np
import torch
from PIL import Image
from scipy.io import savemat
from tqdm import tqdm

import tumorseg as ts
from tumorseg.core import leaves_folder
from tumorseg.data.coco import annotation_facts
from tumorseg.data.download import unpack
from tumorseg.data.splits import load_folds
from tumorseg.evaluation.cross_validation import pool_folds
from tumorseg.evaluation.evaluate import summarise
from tumorseg.training.config import load_config
from tumorseg.tuning.space import load_space
from tumorseg.widgets.tags import read_tags, tag_of, tag_slice

OUTCOMES = "clean", "accepted", "unnamed", "traceback", "nonsense", "memory", "signal", "hang", "stray"
SECONDS, MEMORY, BATCH = 10, 2 << 30, 60  # CPU time of a case; bytes on top of the parent's; cases in a child
QUIET = dict(on_epoch=lambda *_: None)


# ---- odd values

NUMBERS = (0, 1, -1, 7, 156, 10**9, 2**31, 2**63, 10**30, 10**400, .5, 1.5, 1e300, -1e300,
           float("nan"), float("inf"), float("-inf"))
TEXTS = ("", " ", "x", "0", "-1", "1e9", "NA", "train", "fold1", "a\nb", "a\rb", "a,b", '"', "\0", "\ud800", "x" * 300,
         "\x1b]0;x\x07", "=cmd|' /C calc'!A0", "$\\frac0$", "漢" * 90, "../../../escaped", "C:\\escaped", "@deep@")
HOLDERS = ([], {}, [[]], [0], ["x"], [1, 2, 3], {"a": None}, [float("nan")] * 6, ["@deep@"])


def odd(rng: Random) -> object:
    "A value that somebody's file might hold where another is expected."
    kind, = rng.choices((None, bool, float, str, list), (3, 1, 6, 5, 3))
    choices = {None: (None,), bool: (True, False), float: NUMBERS, str: TEXTS, list: HOLDERS}
    return copy.deepcopy(rng.choice(choices[kind]))


class Evil:
    "Unpickled, it would write a file."
    def __reduce__(self): return open, (str(WORLD / "unpickled"), "w")


# ---- changes of a file's content: bytes in, bytes out

def change_bytes(data: bytes, rng: Random) -> bytes:
    "Some bytes changed, doubled, taken away, or the end cut off."
    data = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8))):
        start = int(len(data) * rng.random() ** rng.choice((1, 4)))  # headers stand at the beginning
        end = start + rng.choice((1, 1, 2, 4, 8, 100))
        kind = rng.randrange(6)
        if kind < 2: data[start:start + 1] = bytes([rng.randrange(256)])
        elif kind == 2: data[start:end] = rng.choice((b"\0", b"\xff", b"\x7f")) * (end - start)
        elif kind == 3: del data[start:end]
        elif kind == 4: data[start:start] = data[start:end]
        else: del data[start:]
    return bytes(data)


def _places(value: object, path: tuple = ()) -> Iterator[tuple[tuple, object, object]]:
    "Each place of a JSON value: its path with list positions left out, the holder, and the key in it."
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        below = (*path, key if isinstance(value, dict) else "*")
        yield below, value, key
        yield from _places(value[key], below)


def change_value(value: object, rng: Random) -> object:
    "A JSON value with a few places changed; a place of each kind is as likely as any other, however many there are."
    root = [value]
    for _ in range(rng.choice((1, 1, 1, 2))):
        kinds = {}
        for path, holder, key in _places(root): kinds.setdefault(path, []).append((holder, key))
        holder, key = rng.choice(kinds[rng.choice(sorted(kinds, key=str))]) if kinds else (root, 0)
        chance, now = rng.random(), holder[key]
        if chance < .2 and type(now) in (int, float):
            holder[key] = rng.choice((-now, now + 1, now * 2, now / 3, str(now), 10**400))
        elif chance < .7 or holder is root: holder[key] = odd(rng)
        elif chance < .8: del holder[key]
        elif isinstance(holder, list): holder.insert(0, copy.deepcopy(now))
        else: holder[str(odd(rng))] = holder.pop(key)
    return root[0]


def change_json(data: bytes, rng: Random) -> bytes:
    text = json.dumps(change_value(json.loads(data), rng))
    if "@deep@" in text: return text.replace('"@deep@"', "[" * 100_000 + "]" * 100_000).encode()
    return text.encode(rng.choice(("utf-8",) * 9 + ("utf-8-sig", "utf-16")))


def change_csv(data: bytes, rng: Random) -> bytes:
    rows = list(csv.reader(io.StringIO(data.decode())))
    for _ in range(rng.choice((1, 1, 2))):
        row, column, kind = rng.randrange(len(rows)), rng.randrange(len(rows[0])), rng.randrange(7)
        value = str(odd(rng))
        if kind < 3 and rows[row]: rows[row][column % len(rows[row])] = value
        elif kind == 3: rows = [line[:column] + line[column + 1:] for line in rows]
        elif kind == 4: rows.insert(row, list(rows[row]))
        elif kind == 5: del rows[max(1, row):rng.choice((None, row + 1))]
        else: rows = rows[:1] + [[*line[:column], value, *line[column + 1:]] for line in rows[1:]]
        if not rows[0]: break
    file = io.StringIO()
    csv.writer(file, lineterminator="\n").writerows(rows)
    return file.getvalue().encode("utf-8", "surrogatepass")


def change_npy(data: bytes, rng: Random) -> bytes:
    array, file, kind = np.load(io.BytesIO(data)), io.BytesIO(), rng.randrange(6)
    if kind == 0: array = array.astype(rng.choice(("f8", "i8", "i2", ">u4", "U2", "?", "c8")))
    elif kind == 1: array = rng.choice((array[:-1], array.T, array.ravel(), array[None], array[..., :0], array[:, :1]))
    elif kind == 2: array.flat[rng.randrange(array.size)] += rng.choice((1, 7, 156))
    elif kind == 3: array = np.array([Evil()], object)
    elif kind == 4: return data[:10] + change_bytes(data[10:128], rng)[:118].ljust(118) + data[128:]
    else: return re.sub(rb"[(]\d+", b"(%d" % rng.choice((0, 1, 10**9, 10**18)), data[:128], count=1) + data[128:]
    np.save(file, array, allow_pickle=True)
    return file.getvalue()


def change_safetensors(data: bytes, rng: Random) -> bytes:
    size, kind = int.from_bytes(data[:8], "little"), rng.randrange(5)
    header, body = json.loads(data[8:8 + size]), bytearray(data[8 + size:])
    facts = header["__metadata__"]
    if kind == 0: header = change_value(header, rng)
    elif kind < 3: facts["tumorseg"] = change_json(facts["tumorseg"].encode(), rng).decode("utf-8", "replace")
    elif kind == 3:
        number = struct.pack("<f", rng.choice((np.nan, np.inf, -np.inf, 3e38, -3e38, 1e30, 0.)))
        start = 4 * rng.randrange(len(body) // 4)
        count = rng.choice((1, 1, 100, len(body) // 4))
        body[start:start + 4 * count] = number * len(body[start:start + 4 * count:4])
    else: return struct.pack("<Q", rng.choice((0, size + 1, size - 1, 2**31, 2**63))) + data[8:]
    packed = json.dumps(header).encode()
    return struct.pack("<Q", len(packed)) + packed + bytes(body)


def change_png(data: bytes, rng: Random) -> bytes:
    "Chunks changed, doubled, left out, invented or moved, each with its right checksum."
    chunks, start = [], 8
    while start + 12 <= len(data):
        size = int.from_bytes(data[start:start + 4], "big")
        chunks.append((data[start + 4:start + 8], data[start + 8:start + 8 + size]))
        start += 12 + size
    for _ in range(rng.choice((1, 1, 2))):
        at, kind = rng.randrange(len(chunks)), rng.randrange(6)
        name, body = chunks[at]
        if kind == 0:
            offset, size = rng.choice(((0, 4), (4, 4), (8, 1), (9, 1), (12, 1)))
            number, header = rng.choice((0, 1, 3, 16, 64, 2**31 - 1)), bytearray(chunks[0][1].ljust(13))
            header[offset:offset + size] = (number & (256**size - 1)).to_bytes(size, "big")
            chunks[0] = chunks[0][0], bytes(header)
        elif kind == 1: chunks[at] = name, change_bytes(body, rng)
        elif kind == 2: chunks[at:at + 1] = [chunks[at]] * 2 if len(chunks) < 3 or rng.random() < .5 else []
        elif kind == 3: chunks.insert(rng.randrange(len(chunks) + 1), chunks[at])
        elif kind == 4: chunks[at] = b"IDAT", zlib.compress(bytes(rng.choice((0, 1, 1000, 10**6))))
        else: chunks.insert(1, (rng.choice((b"zTXt", b"iTXt", b"iCCP", b"tRNS", b"PLTE", b"acTL", b"fcTL", b"eXIf")),
                                rng.choice((b"", b"x", b"a\0\0" + zlib.compress(bytes(10**6)), rng.randbytes(26)))))
    packed = (struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
              for name, body in chunks)
    return data[:8] + b"".join(packed)


def change_tiff(data: bytes, rng: Random) -> bytes:
    "Tags that lie: another tag, type, count or value."
    data, start = bytearray(data), int.from_bytes(data[4:8], "little")
    for _ in range(rng.choice((1, 1, 2))):
        at = start + 2 + 12 * rng.randrange(int.from_bytes(data[start:start + 2], "little"))
        offset, size = rng.choice(((0, 2), (2, 2), (4, 4), (8, 2), (8, 4), (8, 4), (8, 4)))
        number = rng.choice((0, 1, 2, 3, 4, 5, 8, 32, 259, 32773, 2**16 - 1, 2**31 - 1, 2**32 - 1, rng.randrange(400)))
        data[at + offset:at + offset + size] = (number & (256**size - 1)).to_bytes(size, "little")
    return bytes(data)


def change_mat(data: bytes, rng: Random) -> bytes:
    "A MATLAB v7.3 file (HDF5) with another field, without one, or with one that points elsewhere."
    if data.startswith(b"MATLAB 5.0"): return change_bytes(data, rng)
    memory, names = io.BytesIO(data), []
    with h5py.File(memory, "r+") as file:
        file.visititems(lambda name, item: names.append(name) if isinstance(item, h5py.Dataset) else None)
        name = rng.choice(names)
        value, shape = file[name][()], file[name].shape
        del file[name]
        kind = rng.randrange(7)
        if kind == 0: file[name] = h5py.SoftLink("/elsewhere")
        elif kind == 1: file[name] = h5py.ExternalLink(str(WORLD / "mat/1.mat"), name)
        elif kind == 2: file[name] = rng.choice((b"text", "", np.bool_(True), np.zeros((0, 0)), value[None], value[:1]))
        elif kind == 3: file.create_dataset(name, (10**6, 10**6), "u1", chunks=(64, 64), compression="gzip")
        elif kind < 6:
            value = value.astype(rng.choice((value.dtype, np.dtype("f8"))))
            with suppress(OverflowError, ValueError): value.flat[rng.randrange(value.size)] = float(rng.choice(NUMBERS))
            file[name] = value if kind == 4 else np.full(shape, value.flat[0])
    return memory.getvalue()


def change_zip(data: bytes, rng: Random) -> bytes:
    "The same slices under odd names and packed in another way, whole or damaged."
    memory, methods = io.BytesIO(), (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
    names = ("1.mat", "2.mat", "a/3.mat", "b/3.mat", "../../../4.mat", f"{WORLD}/5.mat", "..\\6.mat", "C:\\7.mat",
             "8.mat/", "9" * 300 + ".mat", "9" * 9 + ".mat", "x.mat", "\x1b[2J.mat", ".mat")
    with zipfile.ZipFile(memory, "w", rng.choice(methods)) as file:
        for name in rng.choices(names, (20, 20, 4, 4, *[1] * 10), k=3):
            with suppress(ValueError): file.writestr(name, rng.randbytes(20) * 100)
    return memory.getvalue() if rng.random() < .3 else change_bytes(memory.getvalue(), rng)


def change_database(path: Path, rng: Random) -> None:
    "Rows and values of an SQLite database taken away or made odd."
    with closing(sqlite3.connect(path)) as file:
        tables = [name for name, in file.execute("select name from sqlite_master where type='table' order by name")]
        for _ in range(rng.choice((1, 1, 3))):
            table = rng.choice(tables)
            columns = [row[1] for row in file.execute(f"pragma table_info({table})")]
            row = f"rowid in (select rowid from {table} order by rowid limit 1 offset {rng.randrange(6)})"
            value = rng.choice((None, "", "x", -1, 10**9, 1e300, "{}", "[1]", '{"a": 1}', '"x"', b"\0"))
            with suppress(sqlite3.Error):
                if rng.random() < .35: file.execute(f"delete from {table} where {row}")
                else: file.execute(f"update {table} set {rng.choice(columns)} = ? where {row}", (value,))
        file.commit()


CHANGES = {".json": change_json, ".csv": change_csv, ".npy": change_npy, ".safetensors": change_safetensors,
           ".png": change_png, ".tif": change_tiff, ".mat": change_mat, ".zip": change_zip}


def damage(path: Path, rng: Random) -> Path:
    "Damage a file by its format, by its bytes, or as a whole; where it is then."
    chance = rng.random()
    if chance > .96: replace_file(path, rng)
    elif path.suffix == ".db" and chance < .8: change_database(path, rng)
    else:
        change = CHANGES.get(path.suffix, change_bytes) if chance < .8 else change_bytes
        path.write_bytes(change(path.read_bytes(), rng))
    return path


def replace_file(path: Path, rng: Random) -> None:
    "Nothing, an empty file, a folder, a pickle, or a file of another kind in its place."
    path.unlink()
    kind = rng.randrange(5)
    if kind == 0: path.mkdir()
    elif kind < 4: path.write_bytes((b"", pickle.dumps(Evil()), (WORLD / "mat/1.mat").read_bytes())[kind - 1])


def hostile_file(path: Path, rng: Random) -> Path:
    "As `damage`, and what else may stand in a folder of data: a pipe, a link out of it, a name of odd bytes."
    chance = rng.random()
    if chance > .12: return damage(path, rng)
    if chance > .08:
        name = rng.choice((b"t\xfcmor", "漢".encode() * 80, b"$\\frac0$", b"a\nb", b"\x1b[2J", b"=1+1"))
        return path.rename(path.with_name(os.fsdecode(name) + path.suffix))
    path.unlink()
    if chance > .04: path.symlink_to(WORLD / "pictures" / "a.png")
    else: os.mkfifo(path)
    return path


# ---- good files, made once; each case gets its own copy of some of them

WORLD = Path() # their folder, set by `make_world`
CONFIG = ts.Config(epochs=2, width=4, depth=2, batch=4)
SPACE = {"lr": (1e-3, 1e-2, "log"), "batch": [2, 4]}


@functools.cache
def slices() -> ts.Slices:
    "The slices of the runs."
    return ts.open_data(WORLD / "data", 32, split=str(WORLD / "cv/folds.json"), fold=1)


@functools.cache
def segmenter() -> ts.Segmenter: return ts.Segmenter(WORLD / "run")


def search_again(folder: Path) -> dict:
    start = ts.Config(epochs=1, width=4, depth=2, batch=4)
    return ts.tune(lambda size: ts.open_data(WORLD / "data", size), folder, trials=4, space=SPACE, start=start, size=32)


def make_pictures(folder: Path) -> None:
    "One picture in each format and mode; pairs of pictures and masks; figshare's slices; an archive of some."
    rows, columns = np.mgrid[:32, :32]
    mask = ((rows - 14) ** 2 + (columns - 12) ** 2 < 40).astype(np.uint8)
    grey = (rows * 4 + mask * 100).astype(np.uint8)
    for name in ("pictures", "pairs/train/images", "pairs/train/masks", "mat", "archive", "tables"):
        (folder / name).mkdir(parents=True)
    kinds = {"a.png": grey, "b.jpg": grey, "c.tif": grey, "d.bmp": grey, "e.png": grey.astype(np.uint16) * 200,
             "f.png": np.stack([grey] * 4, 2), "g.tif": grey.astype(np.float32), "h.tif": grey.astype(np.uint16)}
    for name, pixels in kinds.items(): Image.fromarray(pixels).save(folder / "pictures" / name)
    for name in ("a.png", "b.jpg", "c.tif"):
        shutil.copy(folder / "pictures" / name, folder / "pairs/train/images")
        Image.fromarray(mask * 255).save(folder / "pairs/train/masks" / f"{name[0]}.png")
    angle = np.linspace(0, 2 * np.pi, 30, endpoint=False)
    border = np.stack([13 + 6.3 * np.cos(angle), 15 + 6.3 * np.sin(angle)], 1).reshape(1, -1)
    fields = dict(PID=np.array([[49], [48]], np.uint16), label=np.array([[2.]]), tumorBorder=border, image=grey.T,
                  tumorMask=mask.T)
    for number in (1, 2, 3):
        with h5py.File(folder / f"mat/{number}.mat", "w") as file:
            for name, value in fields.items(): file[f"cjdata/{name}"] = value
    savemat(folder / "mat/cvind.mat", {"cvind": np.array([[1., 2., 2.]])})
    shutil.copytree(folder / "mat", folder / "newer") # whose folds are in MATLAB's newer format
    with h5py.File(folder / "newer/cvind.mat", "w") as file: file["cvind"] = np.array([[1.], [2.], [2.]])
    (folder / "archive/slices.zip").write_bytes(change_zip(b"", Random(0)))


def make_world(folder: Path) -> None:
    "Data, a cross-validation whose first fold is the run, a training that stopped, a search, tables."
    global WORLD
    WORLD = folder
    make_pictures(folder)
    ts.write_demo(folder / "data", patients=6, size=32)
    for path in folder.glob("data/*/*.json"):
        read = json.loads(path.read_text())
        path.write_text(json.dumps({name: read[name] for name in ("images", "annotations", "categories")}))
    data = ts.open_data(folder / "data", 32)
    ts.cross_validate(data, folder / "cv", CONFIG, ts.choose_split(data, "patients", 3).folds)
    shutil.copytree(folder / "cv/fold_1", folder / "run")
    shutil.copytree(folder / "cv/fold_1", folder / "other")
    ts.predict_split(folder / "run", slices())
    turns = iter(range(9))
    ts.train(slices(), folder / "begun", CONFIG, should_stop=lambda: next(turns) == 5, **QUIET)
    child = os.fork() # whose end closes the database
    if not child:
        search_again(folder / "search")
        os._exit(0)
    os.waitpid(child, 0)
    with closing(sqlite3.connect(folder / "search/search.db")) as file: file.execute("pragma journal_mode=delete")
    shutil.copytree(folder / "home/tumorseg", folder / "cache")
    table = slices().table[["name", "patient"]]
    table.assign(view="axial").to_csv(folder / "tables/patients.csv", index=False)
    tagged = table[["name"]].head(3).assign(tag=["wrong label", "interesting", "model error"], note=["", "NA", "a, b"])
    tagged.to_csv(folder / "tables/tags.csv", index=False)
    space = {"lr": {"low": 1e-4, "high": .1, "log": True}, "width": [4, 8], "depth": {"low": 2, "high": 3}}
    (folder / "tables/space.json").write_text(json.dumps(space))
    shutil.copy(folder / "search/best.json", folder / "tables")


# ---- checks of a result: AssertionError where it is nonsense

def check_slices(slices: ts.Slices, folder: Path | None = None) -> None:
    "Types, shapes and values; nothing of a link that leaves the folder."
    images, masks, table = slices.images, slices.masks, slices.table
    assert images.dtype == masks.dtype == np.uint8 and images.ndim == 4
    assert len(table) and masks.shape == (len(table), *images.shape[2:]) and len(images) == len(table)
    assert masks.max() <= 1 and table["name"].is_unique
    for name in ("name", "split", "patient", "label"): assert all(type(value) is str for value in table[name]), name
    assert not any(map(leaves_folder, table["name"])) and set(table["label"]) <= {"", "box", "contour"}
    assert all(re.fullmatch("train|valid|test|all|fold[0-9]{1,3}", split) for split in set(table["split"])), "splits"
    numbers = table[["category", "height", "width"]]
    assert {dtype.kind for dtype in numbers.dtypes} <= {*"iu"} and numbers.max(axis=None) < 2**31
    assert numbers[["height", "width"]].min(axis=None) > 0
    assert not folder or not any(path.is_symlink() for path in folder.rglob("*")), "a link out of the folder"


def check_shares(*values: object) -> None:
    "Numbers from 0 to 1."
    for value in values:
        value = np.asarray(value, float)
        assert np.isfinite(value).all() and (value >= 0).all() and (value <= 1).all(), value


def check_model(model: ts.Segmenter) -> None:
    check_shares(model(WORLD / "pictures/a.png"), model.info.threshold)
    assert 1 <= model.info.size <= 10_000 and np.isfinite(model.info.mean).all() and np.min(model.info.std) > 0


# ---- the targets: what is damaged, and what reads it

class Target(NamedTuple):
    run: Callable[[Path, Path], None]  # folder of the case, the file that was damaged
    files: tuple[str, ...]  # patterns below WORLD: the files that are damaged; their first folder is copied
    share: float  # of the cases, beside 1 for the others
    writes: tuple[str, ...]  # where in the folder files may be written
    how: Callable[[Path, Random], Path]


TARGETS: dict[str, Target] = {}


def target(*files: str, share: float = 1, writes: tuple[str, ...] = ("out",), how: Callable = damage) -> Callable:
    def register(run: Callable) -> Callable:
        TARGETS[run.__name__] = Target(run, files, share, writes, how)
        return run
    return register


@target("pictures/*", share=2, how=hostile_file)
def pictures(folder, damaged):
    done, problems = ts.predict_files(segmenter(), [damaged], folder / "out")
    if problems: raise ts.InputError(*problems)
    probability = segmenter()(damaged)
    check_shares(probability, done[0]["tumour_share"], done[0]["highest"])
    with Image.open(done[0]["mask"]) as mask: assert mask.size == probability.shape[::-1]


@target("pictures/*.png")
def png(folder, damaged): pictures(folder, damaged)


@target("pictures/*.tif")
def tiff(folder, damaged): pictures(folder, damaged)


@target("data/*/*.json", share=3)
def coco(folder, damaged):
    found = ts.open_data(folder / "data", 32, cache=folder / "out")
    check_slices(found)
    absurd = re.compile(r"None|True|False|-?inf|nan|[\[{].*", re.DOTALL)
    assert not any(map(absurd.fullmatch, set(found.table["patient"]))), "patients"
    annotation_facts(folder / "data")


@target("data/*/*", "pairs/*/*/*", how=hostile_file)
def folders(folder, damaged):
    [data] = folder.iterdir()
    check_slices(ts.open_data(data, 32, cache=folder / "out"), data)


@target("mat/[0-9].mat", how=hostile_file)
def mat(folder, damaged): folders(folder, damaged)


@target("mat/cvind.mat", "newer/cvind.mat")
def cvind(folder, damaged): folders(folder, damaged)


@target("cv/folds.json")
def folds(folder, damaged):
    found = load_folds(damaged)
    assert {*map(type, found.fold.values())} == {int} and 2 < found.count < 100, "folds"
    with suppress(ts.InputError): # the names may be those of other data
        check_slices(ts.choose_split(slices(), str(damaged)))


@target("tables/patients.csv")
def patients(folder, damaged): check_slices(ts.with_patients(slices(), damaged))


@target("run/model.safetensors", share=2)
def model(folder, damaged): check_model(ts.Segmenter(damaged))


@target("begun/last/training.safetensors", share=.6, writes=("begun",))
def training(folder, damaged):
    run = ts.train(slices(), folder / "begun", **QUIET)
    history = run.history
    assert history["epoch"].tolist() == [1, 2] and np.isfinite(history[["train_loss", "valid_loss"]]).all(axis=None)
    check_shares(history["valid_dice"])
    check_model(run.segmenter())


@target("run/config.json", "run/table.csv")
def run(folder, damaged):
    found = ts.Run(folder / "run")
    assert type(found.config) is ts.Config and 1 <= found.size <= 10_000
    found.knows(found.slices(slices()))


@target("tables/best.json", "tables/space.json", "run/config.json", share=2)
def settings(folder, damaged):
    if damaged.name == "space.json": return load_space(damaged)
    config, size = load_config(damaged)
    assert type(config) is ts.Config and (size is None or 1 <= size <= 10_000)


@target("run/slices.csv", "run/table.csv", "run/metrics.json", "run/model.safetensors")
def scores(folder, damaged):
    metrics, found = ts.Run(folder / "run").metrics, ts.Run(folder / "run").scores
    assert type(metrics) is dict
    summary = summarise(found)
    check_shares(found["dice"], *(summary[key] for key in ("dice_mean", "iou_mean", "precision", "recall", "nsd_mean")))
    table, by_slice = ts.compare([folder / "run", WORLD / "other"], slices(), leaking=True)
    check_shares(table[["dice", "low", "high"]], by_slice.iloc[:, 2:])


@target("run/*.csv", "run/*.json", "run/overlays/best.png", share=.25, writes=("run/report.html",))
def report(folder, damaged):
    (folder / "run/report.html").unlink(missing_ok=True)
    page = ts.write_report(folder / "run", slices()).read_text(encoding="utf-8")
    assert page.startswith("<!") and page.count("data:image/png") > 1


@target("run/history.csv", "run/config.json", "run/table.csv", "run/model.safetensors", share=.2)
def doctor(folder, damaged):
    for finding in ts.doctor(slices(), run=folder / "run"): assert finding.cause and finding.evidence and finding.to_do


@target("cv/*.json", "cv/*/*.csv", "cv/*/metrics.json", share=.4, writes=("cv",))
def pool(folder, damaged):
    summary = pool_folds(folder / "cv")
    check_shares(*(summary[key] for key in ("dice_mean", "dice_ci_low", "dice_ci_high", "iou_mean", "precision")))


@target("cache/*/*", share=2, writes=("cache",))
def cache(folder, damaged):
    found, good = (ts.open_data(WORLD / "data", 32, cache=where) for where in (folder / "cache", WORLD / "cache"))
    check_slices(found)
    # which pixels they are is not looked at when a cache is opened: that would take longer than opening it
    assert found.images.shape == good.images.shape and found.masks.shape == good.masks.shape, "another shape"
    assert found.table.equals(good.table), "another table"


@target("run/predictions/*/*", writes=("run/predictions",))
def kept(folder, damaged):
    found, good = (ts.predict_split(where / "run", slices()) for where in (folder, WORLD))
    assert found.percent.dtype == np.uint8 and found.percent.shape == good.percent.shape, "another shape"
    assert found.percent.max() <= 100 and found.counts.shape == good.counts.shape, "no percentages"


@target("tables/tags.csv", writes=("tables/tags.csv",))
def tags(folder, damaged):
    name, table = slices().table["name"][0], read_tags(damaged)
    assert all(type(value) is str for value in table.to_numpy().ravel())
    tag, note = tag_of(damaged, name)
    assert (name, tag, note) in [*table.itertuples(index=False, name=None), (name, "", "")], (tag, note)
    tag_slice(damaged, name, "interesting")


@target("search/search.db", share=.2, writes=("search",))
def search(folder, damaged):
    best = search_again(folder / "search")
    if best["trial"] is not None: check_shares(best["valid_dice"])


@target("archive/slices.zip")
def archive(folder, damaged):
    (folder / "out").mkdir()
    link = folder / "out/1.mat"
    if damaged.is_file() and damaged.stat().st_size % 4 == 0: link.symlink_to(damaged.with_name("elsewhere"))
    count = unpack(damaged, folder / "out")
    names = [path.name for path in (folder / "out").iterdir() if path != link]
    assert len(names) <= count and all(re.fullmatch(r"[0-9]{1,9}\.mat", name) for name in names), names


# ---- cases

def snapshot(folder: Path, but: tuple[Path, ...] = ()) -> dict[str, tuple]:
    "Every file below a folder, with size and time; not what is below the folders in `but`."
    files, waiting = {}, [folder]
    while waiting:
        for entry in os.scandir(waiting.pop()):
            path = Path(entry.path)
            if path in but: continue
            if entry.is_dir(follow_symlinks=False): waiting.append(path)
            state = entry.stat(follow_symlinks=False)
            files[entry.path] = (0, 0) if entry.is_dir(follow_symlinks=False) else (state.st_size, state.st_mtime_ns)
    return files


def place_of(error: BaseException) -> str:
    "The innermost line of ours in a traceback."
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "/tumorseg/" in frame.filename] or frames
    last = frames[-1] if frames[-1].filename == __file__ else ours[-1]
    return f"{'/'.join(Path(last.filename).parts[-2:])}:{last.lineno}"


def judge(action: Callable[[], None], folder: Path, tell: bool) -> tuple[str, str]:
    "The outcome of an action, and what to say of it; the traceback is printed where it is to be told."
    try: action()
    except ts.InputError as error:
        if tell: traceback.print_exc()
        named = str(folder) in str(error)
        return ("clean", "") if named else ("unnamed", f"{place_of(error)} {str(error)[:100]!r}")
    except BaseException as error:
        if tell: traceback.print_exc()
        short = isinstance(error, MemoryError) or re.search("allocate|bad_alloc", str(error))
        ours = traceback.extract_tb(error.__traceback__)[-1].filename == __file__
        kind = "memory" if short else "nonsense" if ours and isinstance(error, AssertionError) else "traceback"
        return kind, f"{type(error).__name__} {place_of(error)} {str(error)[:100]!r}"
    return "accepted", ""


def run_case(name: str, number: int, seed: int, keep: bool = False) -> tuple[str, str]:
    "One case, in this process: its outcome, and what to say of it. Its files and its traceback are for who asks."
    rng, chosen, folder = Random(f"{seed} {name} {number}"), TARGETS[name], WORLD / f"cases/of/{name}-{number}"
    pattern = rng.choice(chosen.files)
    kept = rng.choice(sorted(path for path in WORLD.glob(pattern) if path.is_file())).relative_to(WORLD)
    shutil.copytree(WORLD / kept.parts[0], folder / kept.parts[0])
    damaged = chosen.how(folder / kept, rng)
    world, before = snapshot(WORLD, (WORLD / "home", folder)), snapshot(folder)
    outcome, words = judge(lambda: chosen.run(folder, damaged), folder, keep)
    allowed = tuple(str(folder / part) for part in chosen.writes)
    stray = [path for path, state in snapshot(folder).items()
             if before.get(path) != state and not path.startswith(allowed) and not path.endswith(".lock")]
    stray += [path for path, state in snapshot(WORLD, (WORLD / "home", folder)).items() if world.get(path) != state]
    if not keep: shutil.rmtree(folder, ignore_errors=True)
    return ("stray", f"{len(stray)} files, {stray[0]}") if stray else (outcome, words)


def limit_this_process(log: io.TextIOBase) -> None:
    "So much memory on top of what there is, no core file, nothing printed; a crash leaves its traceback in the log."
    most = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in range(3): os.dup2(nowhere, stream)
    faulthandler.enable(log)
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    faulthandler.register(signal.SIGPROF, log, chain=True)


def run_batch(name: str, numbers: list[int], seed: int) -> list[tuple[str, str]]:
    "Cases in a forked child, an outcome each; where the child dies, the last one says how, and the rest is missing."
    reading, writing = os.pipe()
    log = WORLD / "home/died.log"
    child = os.fork()
    if not child:
        with open(log, "w") as file:
            limit_this_process(file)
            for number in numbers:
                signal.setitimer(signal.ITIMER_PROF, SECONDS)
                faulthandler.dump_traceback_later(6 * SECONDS, exit=True, file=file) # where it waits, using no CPU
                try: found = run_case(name, number, seed)
                except BaseException: found = "broken", traceback.format_exc()[-1500:] # the fuzzer itself
                os.write(writing, (json.dumps(found) + "\n").encode())
            os._exit(0)
    os.close(writing)
    with open(reading) as lines: done = [tuple(json.loads(line)) for line in lines]
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if len(done) < len(numbers):
        last = log.read_text()
        place = re.search(r'([\w.]+/[\w.]+)", line (\d+)', "\n".join(re.findall(".*/tumorseg/.*", last)) or last)
        where = ":".join(place.groups()) if place else "nowhere"
        shutil.rmtree(WORLD / "cases", ignore_errors=True)
        hangs = status == -signal.SIGPROF or "Timeout (" in last
        done.append(("hang" if hangs else "signal", f"{status} {where}"))
    return done


def fuzz(cases: int, seed: int, names: list[str]) -> Iterator[tuple[str, int, str, str]]:
    "All cases, in shares: target, number of the case, outcome, what to say of it."
    whole = sum(TARGETS[name].share for name in names)
    for name in names:
        waiting = list(range(max(1, round(cases * TARGETS[name].share / whole))))
        while waiting:
            done = run_batch(name, waiting[:BATCH], seed)
            for number, (outcome, words) in zip(waiting, done):
                if outcome == "broken": raise RuntimeError(f"--target {name} --case {number}: {words}")
                yield name, number, outcome, words
            del waiting[:len(done)]


# ---- the command

def print_table(counts: dict[str, Counter], out: Path | None) -> None:
    "Outcomes of each target; also as a CSV file."
    rows = [[name, sum(found.values()), *(found[outcome] for outcome in OUTCOMES)] for name, found in counts.items()]
    rows.append(["all", *map(sum, zip(*(row[1:] for row in rows)))])
    for row in (["target", "cases", *OUTCOMES], *rows): print(f"{row[0]:10}", *(f"{value:>9}" for value in row[1:]))
    if not out: return
    with open(out, "w", newline="") as file: csv.writer(file).writerows([["target", "cases", *OUTCOMES], *rows])


def main() -> int:
    "Run the cases that were asked for; 1 where anything but clean and accepted was found."
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=500)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--target", choices=sorted(TARGETS), help="only this one")
    parser.add_argument("--case", type=int, help="only this one of the target, in this process")
    parser.add_argument("--out", type=Path, help="CSV file for the table")
    asked = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
    prepare(folder)
    if asked.case is not None:
        print(*run_case(asked.target, asked.case, asked.seed, keep=True))
        print(*sorted((folder / "cases/of").iterdir()))
        return 0
    counts, failures, begun = {}, {}, time.monotonic()
    names = [asked.target] if asked.target else list(TARGETS)
    for name, number, outcome, words in fuzz(asked.cases, asked.seed, names):
        counts.setdefault(name, Counter())[outcome] += 1
        if outcome in ("clean", "accepted"): continue
        failures.setdefault((name, outcome, *words.split()[:2]), (number, words))
    shutil.rmtree(folder, ignore_errors=True)
    print_table(counts, asked.out)
    print(f"seed {asked.seed}, {time.monotonic() - begun:.0f} s, {len(failures)} distinct failures")
    for (name, outcome, *_), (number, words) in failures.items():
        print(f"--target {name} --case {number}: {outcome} {words}")
    return 1 if failures else 0


def prepare(folder: Path) -> None:
    "Everything that is slow, before the first fork: imports and good files. Caches go into the folder."
    (folder / "home").mkdir()
    os.environ |= {"XDG_CACHE_HOME": str(folder / "home"), "TMPDIR": str(folder / "home")}
    tempfile.tempdir = None
    os.chdir(folder / "home")
    matplotlib.use("Agg")
    torch.set_num_threads(1)
    tqdm.monitor_interval = 0 # no thread: it would not live on in a child
    for module in pkgutil.walk_packages(ts.__path__, "tumorseg."): importlib.import_module(module.name)
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere): make_world(folder)


if __name__ == "__main__": sys.exit(main())
