"""The page of maps shows the values of every map, whatever they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.image import AxesImage

from tests.report.conftest import make_scan
from tripq.report.maps import ShownMap, maps_figure, values_figure, write_maps_report
from tripq.report.slices import AxialSlices


def test_the_pictures_of_a_map_are_drawn(read: Any, tmp_path: Path) -> None:
    dwi = make_scan()
    write_maps_report(tmp_path / "maps.html", dwi, [ShownMap("b0", dwi.b0)], {}, network={})
    sources = [img.get("src") for img in read(tmp_path / "maps.html").root.iter("img")]
    kinds = [source.partition(";base64,")[0] for source in sources]
    assert {"data:image/png", "data:image/svg+xml"} == set(kinds)
    assert min(map(len, sources)) > 5_000


@pytest.mark.usefixtures("undrawn")
def test_the_page_has_each_map_the_network_and_the_scan(
    case: Any, read: Any, tmp_path: Path
) -> None:
    values = np.linspace(-1, 3, len(case.dwi.b0))
    many = np.random.default_rng(0).normal(size=(len(values), 9)).astype(np.float32)
    maps = [
        ShownMap("md", values, "µm²/ms"),
        ShownMap("<b>tensor</b>", many),
        ShownMap("mask", case.truth),
        ShownMap("constant", np.full(len(values), 2.0)),
    ]
    path = tmp_path / "maps.html"
    network = {"Network": "VoxelNetwork", "Weights": "1,234"}
    settings = {"Caution": "for research only", "Task": "diffusivity"}
    write_maps_report(path, case.dwi, maps, settings, network=network, kind="Diffusivity")
    page = read(path)
    assert page.text.startswith("Diffusivity sub-01 <script>alert(1) Caution: for research only")
    assert "md µm²/ms" in page.text
    assert "md −1 −0.8 1 2.8 3" in page.text
    assert "3 more components in the file" in page.text
    assert "component 6" in page.text
    assert "component 7" not in page.text
    assert page.table("network-table") == [["Network", "VoxelNetwork"], ["Weights", "1,234"]]
    assert "b = 2,000 s/mm², 12 directions" in page.text
    assert page.cards()["maps"] == "4"
    broken = ShownMap("md", np.full(len(values), np.nan))
    with pytest.raises(ValueError, match="md: some values are not finite"):
        write_maps_report(path, case.dwi, [broken], {}, network={})
    with pytest.raises(ValueError, match=r"md: \(3,\) values for"):
        write_maps_report(path, case.dwi, [ShownMap("md", np.ones(3))], {}, network={})


def test_slices_are_those_of_the_map_and_the_outside_is_empty() -> None:
    dwi = make_scan("LPS")
    slices = AxialSlices(dwi)
    x, _, z = dwi.voxel_centres().T
    figure = maps_figure(np.stack([z, x], axis=1), ["z", "x"], "mm", slices)
    images = [axes.get_images()[0] for axes in figure.axes if axes.get_images()]
    assert len(images) == 2 * 5
    heights = [float(np.nanmean(image.get_array())) for image in images[:5]]
    assert heights == sorted(heights, reverse=True)
    for image in images[5:]:
        assert isinstance(image, AxesImage)
        assert (np.diff(image.get_array(), axis=1) == -2).all()  # the right is on the left


def test_signed_values_have_colours_about_zero_and_all_are_counted() -> None:
    dwi = make_scan()
    values = np.linspace(-1, 4, len(dwi.b0))[:, None]
    figure = maps_figure(values, ["v"], "", AxialSlices(dwi))
    low, high = figure.axes[0].get_images()[0].get_clim()
    assert low == -high
    counts, _, _ = values_figure(values, ["v"], "").axes[0].patches[0].get_data()
    assert counts.sum() == pytest.approx(98, abs=0.5)
