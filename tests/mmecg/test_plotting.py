"""Plots are true to scale: measured in the pixels of the PNG, as a reader with a ruler would."""

import io

import matplotlib.image
import numpy as np
import pytest

from mmecg.datasets.synthetic import synthetic_ecg
from mmecg.ecg import LEADS, Ecg
from mmecg.errors import SignalError
from mmecg.plotting import MM_PER_INCH, Panel, Shade, ecg_figure, png_bytes, save_png, search_figure, trace_mm

RATE = 500.0


def square_wave(leads=LEADS, seconds=10.0):
    """0 mV with a step to 1 mV in the second half of every second; its median is 0."""
    time = np.arange(int(seconds * RATE)) / RATE
    wave = np.where(time % 1.0 >= 0.6, 1.0, 0.0)
    return Ecg.from_array(np.tile(wave, (len(leads), 1)), sampling_rate_hz=RATE, leads=leads)


def lines(figure, gid):
    return [line for line in figure.axes[0].lines if line.get_gid() == gid]


def pixels(figure, line, dpi):
    figure.set_dpi(dpi)
    return line.get_transform().transform(line.get_xydata())


@pytest.mark.parametrize("dpi", [100, 150, 300])
def test_one_millivolt_spans_ten_millimetres_and_one_second_twenty_five(dpi):
    figure = ecg_figure(square_wave())
    per_mm = dpi / MM_PER_INCH
    rhythm = pixels(figure, lines(figure, "II")[-1], dpi)
    assert np.ptp(rhythm[:, 1]) == pytest.approx(10 * per_mm, abs=0.01)
    assert np.ptp(rhythm[:, 0]) == pytest.approx((10 - 1 / RATE) * 25 * per_mm, abs=0.01)
    pulse = pixels(figure, lines(figure, "calibration")[0], dpi)
    assert np.ptp(pulse[:, 1]) == pytest.approx(10 * per_mm, abs=0.01)
    assert pulse[3, 0] - pulse[2, 0] == pytest.approx(5 * per_mm, abs=0.01)


def test_the_rendered_pulse_is_ten_millimetres_tall_in_the_png():
    dpi = 254  # ten pixels a millimetre
    image = matplotlib.image.imread(io.BytesIO(png_bytes(ecg_figure(square_wave()), dpi=dpi)))[..., :3]
    figure = ecg_figure(square_wave())
    corners = pixels(figure, lines(figure, "calibration")[0], dpi)
    column = round((corners[2, 0] + corners[3, 0]) / 2)
    height = image.shape[0]
    base, top = height - corners[0, 1], height - corners[2, 1]
    dark = (image[:, column] < 0.3).all(axis=1).nonzero()[0]
    assert dark[np.abs(dark - top) < 15].mean() == pytest.approx(top, abs=1.5)
    foot = round((corners[0, 0] + corners[1, 0]) / 2)
    dark = (image[:, foot] < 0.3).all(axis=1).nonzero()[0]
    assert dark[np.abs(dark - base) < 15].mean() == pytest.approx(base, abs=1.5)
    assert base - top == pytest.approx(100, abs=0.5)


def test_png_states_its_dpi():
    pytest.importorskip("PIL")
    from PIL import Image

    with Image.open(io.BytesIO(png_bytes(ecg_figure(square_wave()), dpi=200))) as image:
        assert image.info["dpi"][0] == pytest.approx(200, abs=0.1)


def test_columns_follow_each_other_and_stand_above_their_part_of_the_rhythm_strip():
    ramp = np.tile(np.linspace(-1, 1, 5000), (12, 1))
    figure = ecg_figure(Ecg.from_array(ramp, sampling_rate_hz=RATE))
    strip = lines(figure, "II")[-1].get_xydata()
    for column, lead in enumerate(("I", "aVR", "V1", "V4")):
        (line,) = lines(figure, lead)
        assert line.get_xdata()[0] == pytest.approx(strip[0, 0] + column * 62.5)
        assert np.ptp(line.get_ydata()) == pytest.approx(2.5 * 2 / 10 * 10, abs=0.05)


def test_columns_of_a_short_recording_all_start_at_its_beginning():
    figure = ecg_figure(square_wave(seconds=3.0))
    traces = [lines(figure, lead)[0].get_ydata() for lead in ("I", "aVR", "V1", "V4")]
    for trace in traces[1:]:
        np.testing.assert_allclose(trace, traces[0])


def test_missing_leads_are_marked_and_not_drawn():
    figure = ecg_figure(square_wave(leads=("V2", "I")))
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert texts.count("not recorded") == 10
    assert not lines(figure, "II")
    assert len(lines(figure, "I")) == 2, "the first recorded lead stands in as the rhythm strip"


def test_baseline_offset_is_removed_and_nothing_else():
    signal = np.tile(np.sin(np.arange(1000) / 20), (12, 1)) + 3.0
    trace = trace_mm(Ecg.from_array(signal, sampling_rate_hz=100.0), "V1", 2.0, 2.5)
    expected = signal[6, 200:451]
    np.testing.assert_allclose(trace[1], (expected - np.median(expected)) * 10, atol=1e-5)


def test_start_outside_the_recording_is_refused():
    with pytest.raises(SignalError, match="start is 10 s"):
        ecg_figure(square_wave(), start_s=10.0)


NASTY = {
    "math": "costs $5 or $x_1^{2$ and \\frac{ \\n",
    "long word": "x" * 20_000,
    "long text": "sinus rhythm " * 1500,
    "foreign": "心房颤动 \U0001f493 vorhofflimmern ÄÖÜß",
    "control": "line one\n\tline two\r\n",
    "empty": "",
}


@pytest.mark.parametrize("text", NASTY.values(), ids=NASTY.keys())
@pytest.mark.parametrize("with_ecg", [True, False], ids=["ecg", "bare"])
def test_any_text_stays_on_the_page(text, with_ecg):
    ecg = square_wave() if with_ecg else None
    panel = Panel(heading=text, score="score 0.5", facts=[text], text=text, ecg=ecg)
    figure = search_figure([panel, panel], title=text, footer=text)
    png_bytes(figure, dpi=60)
    page = figure.bbox
    for drawn in figure.axes[0].texts:
        box = drawn.get_window_extent()
        if drawn.get_text().strip():
            assert box.x0 >= 0, drawn.get_text()[:40]
            assert box.x1 <= page.width, drawn.get_text()[:40]
            assert box.y0 >= 0, drawn.get_text()[:40]
            assert box.y1 <= page.height, drawn.get_text()[:40]


def test_a_cut_text_says_how_much_is_left_out():
    figure = search_figure([Panel(heading="1", text="word " * 3000)])
    shown = [text.get_text() for text in figure.axes[0].texts if "word" in text.get_text()]
    drawn = sum(line.split(" … ")[0].split().count("word") for line in shown)
    assert shown[-1].endswith(f"… [{3000 - drawn} more words]")


def test_save_png_leaves_nothing_behind_when_it_fails(tmp_path):
    target = tmp_path / "page.png"
    save_png(ecg_figure(square_wave()), target, dpi=60)
    assert [path.name for path in tmp_path.iterdir()] == ["page.png"]
    assert target.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(FileNotFoundError):
        save_png(ecg_figure(square_wave()), tmp_path / "nowhere" / "page.png", dpi=60)


def test_shade_stands_behind_the_leads_that_were_recorded_and_changed_leads_are_named() -> None:
    ecg = synthetic_ecg(seed=2).select_leads(LEADS[:8])
    values = np.zeros((12, 1000), np.float32)
    values[1, 100:140], values[6, 600:640] = 1.0, -1.0
    figure = search_figure([Panel("Now", ecg=ecg, marks={"V2": "QRS"}, shade=Shade(values, 100.0))])
    (axes,) = figure.axes
    images = [image for image in axes.get_images() if image.get_gid() == "saliency"]
    assert len(images) == 8
    drawn = [np.asarray(image.get_array())[0] for image in images]
    strongest = [colours[np.argmax(colours[:, 3])] for colours in drawn if (colours[:, 3] > 0.2).any()]
    red, _, blue, _ = np.array(sorted(strongest, key=lambda colour: colour[0])).T
    assert len(strongest) == 2
    assert blue[0] > red[0], "against"
    assert red[1] > blue[1], "for"
    words = [text.get_text() for text in axes.texts]
    assert "V2 QRS changed" in words
    assert "V1" in words
