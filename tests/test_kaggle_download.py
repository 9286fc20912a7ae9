"`fetch` and `open_data` of the Kaggle set against a stand-in: one download, no account, errors in one sentence."
import http.server
import io
import json
import threading
import zipfile

import numpy as np
import pytest
from PIL import Image

import tumorseg as ts
from tumorseg.data.sources import FETCHED


@pytest.fixture
def kaggle(tmp_path, monkeypatch):
    "Stands where kagglehub has its TEST environment: gives `kaggle.archive`, keeps the calls in `kaggle.asked`."
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            call = self.path.rsplit("/", 1)[-1]
            self.server.asked.append((call, body, self.headers.get("Authorization")))
            data = self.server.archive if call == "DownloadDataset" else b'{"currentVersionNumber": 1}'
            self.send_response(200 if data else 503)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *args): pass

    try: server = http.server.ThreadingHTTPServer(("127.0.0.1", 7777), Handler)
    except OSError: pytest.skip("port 7777, which kagglehub's test environment uses, is taken")
    server.asked, server.archive = [], b""
    threading.Thread(target=server.serve_forever, daemon=True).start()
    settings = {"KAGGLE_API_ENVIRONMENT": "TEST", "no_proxy": "localhost", "KAGGLEHUB_CACHE": tmp_path / "hub",
                "KAGGLE_CONFIG_DIR": tmp_path / "none", "XDG_CACHE_HOME": tmp_path / "cache"}
    for name, value in settings.items(): monkeypatch.setenv(name, str(value))
    for name in ("KAGGLE_USERNAME", "KAGGLE_KEY", "KAGGLE_API_TOKEN"): monkeypatch.delenv(name, raising=False)
    yield server
    server.shutdown()
    server.server_close()


def zipped(folder):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for path in folder.rglob("*.*"): archive.write(path, path.relative_to(folder))
    return file.getvalue()


def test_the_set_is_downloaded_once_without_an_account(kaggle, tmp_path):
    kaggle.archive = zipped(ts.write_demo(tmp_path / "demo", patients=4, size=48))
    slices, again = ts.open_data("kaggle", 32), ts.open_data("kaggle", 32)
    assert set(slices.table["split"]) == {"train", "valid", "test"} and again.fingerprint() == slices.fingerprint()
    [(body, account)] = [(body, account) for call, body, account in kaggle.asked if call == "DownloadDataset"]
    assert f"{body['ownerSlug']}/{body['datasetSlug']}" == FETCHED["kaggle"] and account is None


def test_it_goes_into_the_folder_that_is_asked_for(kaggle, tmp_path):
    kaggle.archive = zipped(ts.write_demo(tmp_path / "demo", patients=4, size=48))
    folder = ts.fetch("kaggle", tmp_path / "here")
    assert folder == tmp_path / "here" and (folder / "train/_annotations.coco.json").exists()


@pytest.mark.parametrize("archive", [b"", b"no zip"])
def test_a_failed_download_is_one_sentence(kaggle, archive):
    kaggle.archive = archive
    with pytest.raises(ts.InputError, match="kaggle.com/datasets/pkdarabi") as caught: ts.open_data("kaggle", 32)
    assert len(caught.value.problems) == 1


def test_healthy_slices_are_the_class_without_tumour_of_both_folders(kaggle, tmp_path):
    rng = np.random.default_rng(0)
    for part, kind, count in (("Training", "notumor", 4), ("Testing", "notumor", 2), ("Training", "glioma", 3)):
        (tmp_path / "classes" / part / kind).mkdir(parents=True)
        for number in range(count):
            pixels = rng.integers(0, 255, (40, 40), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "classes" / part / kind / f"{part}-{number}.jpg")
    kaggle.archive = zipped(tmp_path / "classes")
    data = ts.write_demo(tmp_path / "demo", patients=4, size=48)
    plain, slices = ts.open_data(data, 32), ts.open_data(data, 32, healthy="healthy")
    added = slices.table[slices.table["source"] == "healthy"]
    assert len(slices) == len(plain) + 6 and added["name"].str.contains("notumor/").all()
    assert set(added["name"].str.split("/").str[1]) == {"Training", "Testing"}
    [body] = [body for call, body, _ in kaggle.asked if call == "DownloadDataset"]
    assert f"{body['ownerSlug']}/{body['datasetSlug']}" == FETCHED["healthy"]
    with pytest.raises(ts.InputError, match="without masks|not a layout"): ts.open_data("healthy", 32)
