from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from adaptive_ray.datasets.image_listing import Skipped, Tree, list_images
from tests.adaptive_ray.datasets.folders import images


def listed(root: Path) -> tuple[Tree, list[str]]:
    """The listed images and the lines about skipped files."""
    skipped = Skipped()
    tree = list_images(root, skipped)
    return tree, sorted(skipped.lines())


def test_images_are_listed_by_their_names_in_any_case_and_at_any_depth(tmp_path: Path) -> None:
    names = ["a.JPG", "b.jpeg", "c.Png", "d.tif", "e.TIFF", "f.webp", "g.bmp", "h.gif", "größe ½.png", "-x y'\"$.png"]
    (tmp_path / "one" / "two").mkdir(parents=True)
    (tmp_path / "empty").mkdir()
    for name in names:
        (tmp_path / "one" / "two" / name).write_bytes(b"nothing is opened")
    (tmp_path / "z.ppm").write_bytes(b"")
    for name in ("no.txt", "no", "png", "no.png.gz", "no.npy"):
        (tmp_path / "one" / name).write_bytes(b"")
    tree, skipped = listed(tmp_path)
    assert tree == {(): ["z.ppm"], ("one",): [], ("one", "two"): sorted(names), ("empty",): []}
    assert skipped == ["other file types: 5 (one/no, one/no.npy, one/no.png.gz, ...)"]


def test_hidden_files_are_skipped(tmp_path: Path) -> None:
    root = images(tmp_path / ".cache" / "data")  # what holds the root may be hidden
    for name in (".ipynb_checkpoints", "__MACOSX", "@eaDir"):
        images(root / name)
    (root / "._000.png").write_bytes((root / "000.png").read_bytes())
    tree, skipped = listed(root)
    assert tree == {(): ["000.png", "001.png", "002.png"]}
    assert skipped == ["hidden files and directories: 4 (._000.png, .ipynb_checkpoints, @eaDir, ...)"]


def test_links_are_followed_once(tmp_path: Path) -> None:
    root, elsewhere = images(tmp_path / "data" / "b", 2).parent, images(tmp_path / "elsewhere", 2)
    (root / "a").symlink_to("b")  # before what it leads to
    (root / "c").symlink_to(elsewhere)
    (root / "b" / "up").symlink_to(root)
    (root / "b" / "further_up").symlink_to(tmp_path)
    (root / "b" / "itself").symlink_to("itself")
    tree, skipped = listed(root)
    assert tree == {(): [], ("b",): ["000.png", "001.png"], ("c",): ["000.png", "001.png"]}
    assert skipped == [
        "broken links and special files: 1 (b/itself)",
        "directories linked twice: 3 (a, b/further_up, b/up)",
    ]


def test_a_file_with_several_links_counts_once(tmp_path: Path) -> None:
    root = images(tmp_path / "data" / "b", 2).parent
    pool = images(tmp_path / "pool", 1, first=7)
    (root / "a").mkdir()
    (root / "a" / "soft.png").symlink_to(root / "b" / "000.png")
    os.link(root / "b" / "001.png", root / "b" / "hard.png")
    (root / "a" / "outside.png").symlink_to(pool / "007.png")  # data sets may be nothing but links
    (root / "a" / "again.png").symlink_to(pool / "007.png")
    (root / "a" / "broken.png").symlink_to("nowhere")
    os.mkfifo(root / "a" / "pipe.png")
    (root / "a" / "folder.png").mkdir()
    tree, skipped = listed(root)
    assert tree == {(): [], ("a",): ["again.png"], ("b",): ["000.png", "001.png"], ("a", "folder.png"): []}
    assert skipped == [
        "broken links and special files: 2 (a/broken.png, a/pipe.png)",
        "files linked twice: 3 (a/outside.png, a/soft.png, b/hard.png)",
    ]


def test_names_that_are_not_text(tmp_path: Path) -> None:
    for name in (b"\xff\xfe.png", b"two\nlines.txt", b"\xff.txt"):
        (tmp_path / os.fsdecode(name)).write_bytes(b"")
    tree, skipped = listed(tmp_path)
    assert [os.fsencode(name) for name in tree[()]] == [b"\xff\xfe.png"]
    assert skipped == ["other file types: 2 (two\\nlines.txt, \\udcff.txt)"]
    assert skipped[0].isascii()


@pytest.fixture
def everybodys() -> Iterator[Path]:
    """A directory that other users can access, unlike pytest's."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


def test_folders_without_permission(everybodys: Path) -> None:
    images(everybodys / "open", 1)
    images(everybodys / "closed", 1).chmod(0)
    user = os.geteuid()
    if user == 0:  # who may read everything
        os.seteuid(65534)
    try:
        tree, skipped = listed(everybodys)
    finally:
        os.seteuid(user)
    assert tree == {(): [], ("open",): ["000.png"], ("closed",): []}
    assert skipped == ["directories that cannot be listed (permission denied): 1 (closed/)"]
