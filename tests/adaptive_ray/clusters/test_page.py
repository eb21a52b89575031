"""The HTML page of clusters and its plots."""

from __future__ import annotations

import base64
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from adaptive_ray.clusters import count_clusters, pictures
from adaptive_ray.clusters.page import summary_of, write_page
from adaptive_ray.config.clusters import AlphaM
from trainables.batches import ImageFiles


def blots(n: int, channels: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Returns images of three shades and their features."""
    generator = np.random.default_rng(0)
    shade = np.repeat([40, 120, 220], [n // 2, n // 3, n - n // 2 - n // 3])
    images = np.broadcast_to(shade[:, None, None, None], (n, channels, 8, 8)).astype(np.uint8)
    return images, (np.eye(3)[shade // 90] * 9 + generator.normal(size=(n, 3))).astype(np.float16)


@pytest.mark.parametrize("channels", [1, 3])
def test_page_is_self_contained(tmp_path: Path, channels: int) -> None:
    images, features = blots(120, channels)
    found = count_clusters(features)
    assert found.m == 3
    summary = summary_of(found, "pixels", AlphaM(alpha=12))
    write_page(tmp_path / "clusters.html", "blots & <dots>", images, features, found, summary)
    page = (tmp_path / "clusters.html").read_text()
    assert "3 clusters in blots &amp; &lt;dots&gt;" in page
    assert "120 training images, embedded with pixels" in page
    assert re.search(r"<b>40</b><span>batch size = 12 x M", page)
    assert re.findall(r'(?:src|href)="(?!data:|#)', page) == []
    for part in re.findall(r'src="data:image/png;base64,([^"]+)"', page):
        assert Image.open(io.BytesIO(base64.b64decode(part))).size[0] > 1000
    assert page.count("<svg") == 2
    assert json.loads(json.dumps(summary)) == summary
    assert (summary["m"], sum(summary["sizes"]), summary["suggested_batch_size"]) == (3, 120, 40)


@pytest.mark.parametrize("n", [1, 3, 12])
def test_page_of_few_images(tmp_path: Path, n: int) -> None:
    images, features = blots(max(n, 3))
    images, features = images[:n], features[:n]
    found = count_clusters(features)
    write_page(tmp_path / "page.html", "few", images, features, found, summary_of(found, "pixels", AlphaM()))
    assert f"{found.m} cluster{'' if found.m == 1 else 's'} in few" in (tmp_path / "page.html").read_text()


def test_page_of_degenerate_clusters(tmp_path: Path) -> None:
    images, features = blots(30)
    found = count_clusters(features, m=30)
    summary = summary_of(found, "pixels", AlphaM())
    assert summary["stability"] is None
    write_page(tmp_path / "many.html", "many", images, features, found, summary)
    assert f"the {pictures.SHOWN} largest clusters" in (tmp_path / "many.html").read_text()
    same = count_clusters(np.ones((30, 3)))
    write_page(tmp_path / "one.html", "one", images, np.ones((30, 3)), same, summary_of(same, "pixels", AlphaM()))
    assert "Note: all features are equal." in (tmp_path / "one.html").read_text()


def test_examples_of_image_files(tmp_path: Path) -> None:
    images, features = blots(24)
    for number, image in enumerate(images):
        Image.fromarray(image.transpose(1, 2, 0)).save(tmp_path / f"{number:02}.png")
    found = count_clusters(features, m=3)
    in_memory = pictures.examples(images, found.labels, found.centrality)
    files = ImageFiles(sorted(tmp_path.glob("*.png")), 8)
    assert pictures.examples(files, found.labels, found.centrality) == in_memory


@pytest.mark.parametrize(("m", "size"), [(1, 32), (3, 48), (10, 160), (21, 336), (1000, 4096)])
def test_batch_size_is_rounded_and_clipped(m: int, size: int) -> None:
    assert AlphaM().batch_size(m) == size
