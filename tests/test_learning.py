"""The animation of a run's training: its numbers are those of the views, and any browser can play it."""

import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest

from commands import run_command
from lenses import LINE, random_checkpoint
from octavo import lens, runs
from octavo.errors import OctavoError
from octavo.lens.learning import learning_svg
from octavo.runs import Run

SVG = "{http://www.w3.org/2000/svg}"


def animations(element: ET.Element, attribute: str) -> list[list[float]]:
    """The values of all animations of an attribute, in order."""
    found = [each for each in element.iter(f"{SVG}animate") if each.get("attributeName") == attribute]
    return [[float(value) for value in each.attrib["values"].split(";")] for each in found]


@pytest.fixture(scope="module")
def picture(tiny_run: Run) -> ET.Element:
    return ET.fromstring(learning_svg(tiny_run, LINE, ("a", "e")))


def test_the_head_and_the_pair_have_the_numbers_of_the_views(picture: ET.Element, tiny_run: Run) -> None:
    steps = list(tiny_run.checkpoints)
    last = runs.load(tiny_run.checkpoints[steps[-1]])
    ids = [token.id for token in lens.tokens(last, LINE).tokens][:14]
    head = lens.attention(last, ids)
    weights = [
        lens.attention(runs.load(folder), ids, layer=head.layer, head=head.head).weights
        for folder in tiny_run.checkpoints.values()
    ]
    rows, columns = np.tril_indices(len(ids))
    expected = np.sqrt(np.stack(weights)[:, rows, columns]).T
    shown = np.array(animations(picture, "fill-opacity"))
    assert shown.shape == (
        len(rows),
        len(steps) + 1,
    )  # the last checkpoint is shown for longer
    np.testing.assert_allclose(shown[:, :-1], expected, atol=1e-4)
    np.testing.assert_allclose(shown[:, -1], expected[:, -1], atol=1e-4)
    history = lens.neighbors(last, "a", top=1, against="e").history
    texts = [each.text for each in picture.iter(f"{SVG}text")]
    for each in history:
        assert f"{each.against:.2f}" in texts
    for step in steps:
        assert f"step {step:,}" in texts


def test_one_frame_is_visible_at_a_time_and_the_last_one_without_animations(picture: ET.Element, tiny_run: Run) -> None:
    frames = [each for each in picture.iter(f"{SVG}g") if each.get("visibility")]
    count = len(tiny_run.checkpoints)
    assert len(frames) % count == 0
    for i in range(0, len(frames), count):
        panel = frames[i : i + count]
        assert [frame.get("visibility") for frame in panel] == ["hidden"] * (count - 1) + ["visible"]
        values = [frame.find(f"{SVG}animate").attrib["values"].split(";") for frame in panel]  # type: ignore[union-attr]
        for moment in zip(*values, strict=True):
            assert moment.count("visible") == 1
    for each in picture.iter(f"{SVG}animate"):
        times = [float(time) for time in each.attrib["keyTimes"].split(";")]
        assert times[0] == 0
        assert times[-1] == 1
        assert times == sorted(times)
        assert len(times) == len(each.attrib["values"].split(";"))


def test_names_on_the_last_map_do_not_overlap(picture: ET.Element) -> None:
    names = [each for each in picture.iter(f"{SVG}text") if each.find(f"{SVG}animate") is not None]
    assert len(names) > 5
    places = [
        (
            float(each.attrib["x"]),
            float(each.attrib["y"]),
            len("".join(each.itertext())),
        )
        for each in names
    ]
    for i, (x, y, length) in enumerate(places):
        for other_x, other_y, other_length in places[:i]:
            assert abs(y - other_y) > 13 or x > other_x + 6 * other_length or other_x > x + 6 * length


def test_a_model_without_checkpoints_of_training_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OctavoError, match="two checkpoints"):
        learning_svg(random_checkpoint(tmp_path / "model", "byte").folder)


def test_inspect_writes_the_picture(tiny_run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "out" / "learning.svg"
    options = ["--text", LINE, "--word", "a", "--against", "e"]
    result = run_command(capsys, "inspect", tiny_run.folder, "--learning", path, *options)
    assert (result.code, result.out) == (0, "")
    assert path.read_text(encoding="utf-8") == learning_svg(tiny_run, LINE, ("a", "e"))
    for wrong in (
        ["--learning", tmp_path / "a.gif"],
        ["--learning", path, "--layer", 1],
        ["--learning", path, "--word", "a"],
    ):
        assert run_command(capsys, "inspect", tiny_run.folder, *wrong).code == 2
