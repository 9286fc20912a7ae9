"""Whether a model knows what it has not learnt from: slices of patients apart, and pictures that are no such slices.

    python benchmarks/unlike.py CHENG KAGGLE HEALTHY LGG [--csv results/unlike.csv]

CHENG is a folder with images/NUMBER.jpg and slices.csv (number, patient_group), KAGGLE one with train, valid and test;
the number in the name of a Kaggle file leads to its patient. HEALTHY has pictures without tumour of other sequences
(T2, FLAIR), LGG .tif files with the channels pre-contrast, FLAIR and post-contrast. Photographs come with scikit-learn
and matplotlib, and with scikit-image where it is installed. No network is trained: only the slices are described.
"""
import io
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import matplotlib
import numpy as np
import pandas as pd
import sklearn.datasets
import tyro
from machine import machine
from PIL import Image, ImageDraw
from tqdm import tqdm

from tumorseg.core import save_json
from tumorseg.data.images import as_picture, read_image, to_square
from tumorseg.model.familiar import learn_look, unlike_in_words

SIZES = (64, 128, 256)
Folder = tyro.conf.Positional[Path]


def photographs() -> Iterator[np.ndarray]:
    "Whole pictures, and crops of three of them."
    folders = [Path(sklearn.datasets.__file__).parent / "images", Path(matplotlib.get_data_path()) / "sample_data"]
    names = ["china.jpg", "flower.jpg", "grace_hopper.jpg", "Minduka_Present_Blue_Pack.png"]
    try:
        import skimage
        folders.append(Path(skimage.__file__).parent / "data")
        names += ["astronaut.png", "camera.png", "chelsea.png", "coffee.png", "coins.png", "hubble_deep_field.jpg",
                  "moon.png", "motorcycle_left.png", "retina.jpg", "rocket.jpg"]
    except ImportError: print("scikit-image is not installed: fewer photographs", file=sys.stderr)
    for name in names:
        image = read_image(next(folder / name for folder in folders if (folder / name).exists()))
        yield image
        height, width = image.shape[1] // 2, image.shape[2] // 2
        if name in names[:3]:
            for row, column in ((0, 0), (0, width), (height, 0), (height // 2, width // 2)):
                yield image[:, row:row + height, column:column + width]


def noise() -> Iterator[np.ndarray]:
    "Of several kinds, over the whole picture and inside a disc, like a head's outline."
    rng, (rows, columns) = np.random.default_rng(0), np.mgrid[:256, :256]
    disc = np.hypot(rows - 128, columns - 128) < 100
    coarse = np.asarray(Image.fromarray(rng.integers(0, 256, (32, 32), dtype=np.uint8)).resize((256, 256)))
    kinds = [rng.integers(0, 256, (256, 256)), rng.normal(80, 50, (256, 256)).clip(0, 255),
             rng.integers(0, 40, (256, 256)), 255 * rng.integers(0, 2, (256, 256)), coarse]
    for kind in kinds: yield from (kind[None].astype(np.uint8), (kind * disc)[None].astype(np.uint8))


def drawings() -> Iterator[np.ndarray]:
    "Faces, shapes, letters, patterns: dark on white, and white on black."
    text = "\n".join(["A letter to the doctor about a scan of last week"] * 18)
    marks = [lambda draw: (draw.ellipse((40, 20, 260, 280), outline=255, width=4),
                           draw.ellipse((90, 90, 120, 120), 255), draw.ellipse((180, 90, 210, 120), 255),
                           draw.arc((100, 150, 200, 230), 0, 180, 255, 4)),
             lambda draw: (draw.ellipse((40, 20, 260, 280), 200), draw.ellipse((55, 35, 245, 265), 70),
                           draw.ellipse((150, 90, 200, 140), 220)), # a skull, a brain and a tumour
             lambda draw: draw.ellipse((60, 60, 240, 240), 200),
             lambda draw: draw.rectangle((80, 80, 220, 220), 150),
             lambda draw: draw.text((10, 10), text, 255),
             lambda draw: [draw.rectangle((x, 0, x + 15, 300), 200) for x in range(0, 300, 30)]]
    for mark in marks:
        picture = Image.new("L", (300, 300))
        mark(ImageDraw.Draw(picture))
        yield from (np.asarray(picture)[None], 255 - np.asarray(picture)[None])


def turned_by_exif(image: np.ndarray) -> np.ndarray:
    "The slice as a file stored lying on its side, with the orientation that viewers set upright."
    exif, file = Image.Exif(), io.BytesIO()
    exif[0x0112] = 6 # to be turned a quarter to the right
    Image.fromarray(np.rot90(image[0])).save(file, "PNG", exif=exif)
    return as_picture(Image.open(file))


def squares(files: list[Path], channels: int = 1) -> dict[int, np.ndarray]:
    "The pictures in files at each of the sizes."
    images = [read_image(file, channels) for file in tqdm(files, desc=files[0].parent.name)]
    return {size: np.array([to_square(image, size) for image in images]) for size in SIZES}


def rows_for(trained_on: str, size: int, train: np.ndarray, asked: dict[str, np.ndarray]) -> Iterator[dict]:
    "A row for each group of pictures: how many there are, how many are called unlike."
    familiar = learn_look(train)
    for name, images in asked.items():
        unlike = sum(bool(unlike_in_words(familiar, image)) for image in images)
        yield dict(trained_on=trained_on, size=size, pictures=name, count=len(images), unlike=unlike,
                   share=round(unlike / len(images), 3))


def main(cheng: Folder, kaggle: Folder, healthy: Folder, lgg: Folder,
         csv: Annotated[Path | None, tyro.conf.arg(help="where the table goes")] = None,
         ) -> None:
    "Describe training slices at each size, and ask about all the others."
    table = pd.read_csv(cheng / "slices.csv").drop_duplicates("number")
    group = dict(zip(table["number"], table["patient_group"].astype(str)))
    files = [cheng / f"images/{number}.jpg" for number in group]
    official = {split: sorted((kaggle / split).glob("*.jpg")) for split in ("train", "valid", "test")}
    every = [file for split in official.values() for file in split]
    numbers = [int(re.match(r"\d+", file.name)[0]) for file in every]
    ours, theirs = squares(files), squares(every)
    others, channels = squares(sorted(healthy.glob("*.jpg"))), squares(
        sorted(file for file in lgg.rglob("*.tif") if "mask" not in file.name), 3)
    made = {name: list(kind()) for name, kind in
            (("photographs", photographs), ("noise", noise), ("drawings", drawings))}
    known = np.array([group.get(number, "") for number in numbers])
    names = np.unique(list(group.values()))
    held = set(np.random.default_rng(0).permutation(names)[:len(names) // 5]) # a fifth of the patients
    test_ours = np.array([group[number] in held for number in group])
    test_theirs, train_theirs = np.isin(known, list(held)), (known != "") & ~np.isin(known, list(held))
    is_test = np.array([file.parent.name == "test" for file in every])
    is_train = np.array([file.parent.name == "train" for file in every])
    rows = []
    for size in SIZES:
        cheng_set, kaggle_set, outside = ours[size], theirs[size], others[size]
        at_size = {name: np.array([to_square(image, size) for image in images]) for name, images in made.items()}
        sequences = {"other sequences (healthy: T2, FLAIR, T1)": outside,
                     **{f"lgg, {name}": channels[size][:, place:place + 1]
                        for place, name in enumerate(("pre-contrast", "FLAIR", "post-contrast"))}}
        trainings = [("cheng", cheng_set[~test_ours], cheng_set[test_ours]),
                     ("kaggle, patients apart", kaggle_set[train_theirs], kaggle_set[test_theirs]),
                     ("kaggle, official split", kaggle_set[is_train], kaggle_set[is_test]),
                     ("cheng + 400 healthy", np.concatenate([cheng_set[~test_ours], outside[:400]]),
                      cheng_set[test_ours])]
        for name, train, test in trainings:
            few = test[::max(1, len(test) // 50)]
            changed = {"inverted": 255 - few, "upside down": few[:, :, ::-1], "on its side": few.transpose(0, 1, 3, 2),
                       "EXIF orientation": np.array([turned_by_exif(image) for image in few]),
                       "low contrast": (few * .3 + 60).astype(np.uint8), "dark": (few * .4).astype(np.uint8)}
            asked = {"test slices": test, **at_size, **changed, **sequences}
            if "healthy" in name: asked["other sequences (healthy: T2, FLAIR, T1)"] = outside[400:]
            rows += rows_for(name, size, train, asked)
        print(f"{size} px done", file=sys.stderr)
    found = pd.DataFrame(rows)
    print(found.to_string(index=False))
    if csv:
        found.to_csv(csv, index=False)
        save_json(csv.with_suffix(".json"), {"command": "python benchmarks/unlike.py CHENG KAGGLE HEALTHY LGG "
                                             "--csv results/unlike.csv", "machine": machine(),
                                             "data": {"cheng": len(files), "kaggle": len(every),
                                                      "healthy": len(others[64]), "lgg": len(channels[64])}})


if __name__ == "__main__": tyro.cli(main)
