"""What the cache costs: flat memory, and nothing left behind by a process that fails."""
import subprocess
import sys
from pathlib import Path

import pytest

import tumorseg as ts
from tumorseg.data.coco import COCO_NAME
from tumorseg.quality.overview import count_subsets

SHARED = Path(__file__).parents[2] / "shared"

WRITE = """
import resource, sys
import numpy as np
from tumorseg.data.slices import load_slices, save_slices
count, folder = int(sys.argv[1]), sys.argv[2]
image, row = np.random.default_rng(0).integers(0, 255, (1, 256, 256)).astype(np.uint8), dict(
    name="a", split="train", patient="", category=1, label="box", height=256, width=256)
save_slices(folder, ((image, image[0] % 2, row) for _ in range(count)), count, 1, 256)
slices = load_slices(folder)
total = sum(int(slices.images[i].max()) for i in range(0, 50))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


def test_memory_does_not_grow_with_the_number_of_slices(tmp_path):
    def most_memory(count):
        command = [sys.executable, "-c", WRITE, str(count), tmp_path / str(count)]
        return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    few, many = most_memory(60), most_memory(2060)
    assert many - few < 30, f"2000 slices more, which are 250 MiB, took {many - few:.0f} MiB more"


def test_all_problems_of_a_folder_are_told_together_and_nothing_stays(tmp_path):
    folder = ts.write_demo(tmp_path / "demo", patients=4, size=48)
    first, second, *_ = sorted((folder / "train").glob("*.jpg"))
    first.unlink()
    second.write_bytes(second.read_bytes()[:200])
    note = folder / "test" / COCO_NAME
    note.write_text(note.read_text().replace('"image_id": 0', '"image_id": 999', 1))
    with pytest.raises(ts.InputError) as caught: ts.open_data(folder, 32, cache=tmp_path / "cache")
    text = "\n".join(caught.value.problems)
    assert len(caught.value.problems) == 3 and first.name in text and second.name in text and "999" in text
    assert not list((tmp_path / "cache").iterdir())


@pytest.mark.skipif(not SHARED.is_dir(), reason="the real data sets are not beside the project (../shared)")
def test_the_counts_of_the_kaggle_set_in_the_notebook_are_those_of_its_files(tmp_path):
    counts = count_subsets(ts.open_data(SHARED / "data/kaggle", 64, cache=tmp_path))
    columns = ["slices", "category 1", "category 2", "without_tumour"]
    assert counts[columns].to_numpy().tolist() == [[1502, 771, 730, 1], [429, 210, 219, 0], [215, 118, 97, 0]]
