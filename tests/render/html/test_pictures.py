"""Tiles: pixels that come back, what is cut, what the difference is, and the budget."""

import base64
import io
from dataclasses import replace

import numpy as np
from page_support import example_images
from PIL import Image

from purify_audit.render.html.pictures import data_uri, gallery


class TestPictures:
    def decode(self, uri):
        raw = base64.b64decode(uri.removeprefix("data:image/png;base64,"))
        return np.asarray(Image.open(io.BytesIO(raw)))

    def test_pixels_come_back(self):
        pixels = np.arange(12, dtype=np.float32).reshape(3, 2, 2) / 255
        back = self.decode(data_uri(pixels, 224))
        assert back.transpose(2, 0, 1).tolist() == np.arange(12).reshape(3, 2, 2).tolist()

    def test_grey_and_other_channels(self):
        grey = self.decode(data_uri(np.full((1, 2, 2), 0.2), 224))
        assert grey.tolist() == [[51, 51], [51, 51]]
        four = self.decode(data_uri(np.array([0.0, 0.4, 0.4, 0.0])[:, None, None], 224))
        assert four.tolist() == [[51]]

    def test_what_is_outside_is_cut_and_what_is_no_number_is_grey(self):
        pixels = np.array([[[-1.0, 2.0, np.nan, np.inf]]])
        assert self.decode(data_uri(pixels, 224)).tolist() == [[0, 255, 128, 128]]

    def test_the_difference_is_ten_times_purified_minus_clean(self):
        made = example_images(1, (1, 1, 2))
        clean = np.array([[[[0.5, 0.5]]]], np.float32)
        purified = np.array([[[[0.52, 0.44]]]], np.float32)
        (strip,) = gallery(replace(made, clean=clean, purified=purified), 10**6).strips
        assert strip.tiles[-1].what == "difference"
        assert self.decode(strip.tiles[-1].uri).tolist() == [[round(255 * 0.7), 0]]

    def test_smaller_then_fewer_within_the_budget(self):
        made = example_images(8, (3, 64, 64))
        whole = gallery(made, 10**7)
        assert (whole.shown_side, whole.left_out) == (64, 0)
        smaller = gallery(made, 300_000)
        assert smaller.shown_side < 64
        assert smaller.left_out == 0
        few = gallery(made, 20_000)
        assert few.left_out > 0
        assert {s.worst for s in few.strips} == {True, False}
        for g in (smaller, few):
            assert sum(len(t.uri) for s in g.strips for t in s.tiles) <= 300_000
