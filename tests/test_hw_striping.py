"""Convolutions in stripes: every output pixel once, and the rows that it reads are there."""

from __future__ import annotations

import numpy as np
from hypothesis import assume, given
from hypothesis import strategies as st

from hw.assembler import MAX_PIXELS
from hw.convolution import output_shape
from hw.program import Region
from hw.striping import add_buffers, input_rows, stripings
from model.qnetwork import Coding, Product, QConv, Requantizer

CODING = Coding("signed", 1.0)
MAC = Product("sign-magnitude", CODING, CODING, CODING, Requantizer(1 << 15, 15, 0, -127, 127), "m")
few = st.integers(1, 5)


@st.composite
def convolutions(draw: st.DrawFn) -> tuple[QConv, tuple[int, int, int]]:
    """A convolution, and the shape of its input."""
    height, width, cin, cout = draw(st.integers(1, 70)), draw(st.integers(1, 70)), draw(few), draw(few)
    kh, kw, padding = draw(few), draw(few), draw(st.integers(0, 2))
    assume(kh <= height + 2 * padding and kw <= width + 2 * padding)
    weights, bias = np.zeros((cout, kh, kw, cin), np.int16), np.zeros(cout, np.int32)
    return QConv(weights, bias, draw(st.integers(1, 3)), MAC, padding), (height, width, cin)


@given(convolutions(), st.integers(1, 5), st.booleans(), st.booleans(), st.integers(0, 3))
def test_stripes_make_every_row_once(
    drawn: tuple[QConv, tuple[int, int, int]], batch: int, here_outside: bool, out_outside: bool, gap: int
) -> None:
    conv, shape = drawn
    shape_out = output_shape(conv, shape)
    here = Region(shape, CODING, 0, batch, pitch=shape[1] * shape[2] + gap, external=here_outside)
    out = Region(shape_out, CODING, 0, batch, external=out_outside)
    every = list(stripings(conv, here, out))
    assert every
    for striping in every:
        made = np.zeros((batch, shape_out[0]), int)
        for stripe in striping.stripes:
            made[stripe.image : stripe.image + stripe.images, stripe.top : stripe.top + stripe.rows] += 1
            assert stripe.images * stripe.rows * shape_out[1] <= MAX_PIXELS
            first, end = input_rows(conv, shape[0], stripe)
            tops = range(stripe.top, stripe.top + stripe.rows)
            read = {top * conv.stride - conv.padding + dy for top in tops for dy in range(conv.weights.shape[1])}
            assert {row for row in read if 0 <= row < shape[0]} <= set(range(first, end))
            assert 0 <= end - first <= max(read) + 1 - min(read)
            if here_outside:
                assert stripe.images * (end - first) * here.row_bytes <= striping.input_bytes
            if out_outside:
                assert stripe.images * stripe.rows * out.row_bytes <= striping.output_bytes
        assert (made == 1).all()
        assert 1 <= striping.ahead <= min(2, len(striping.stripes))
        assert len(striping.buffers) == here_outside * striping.ahead + out_outside
        assert striping.hidden or (here_outside and len(striping.stripes) > striping.ahead)


@given(st.integers(1, 1000), st.integers(1, 1000), st.booleans(), st.booleans(), st.booleans())
def test_buffers_of_sums(total: int, piece: int, a_outside: bool, b_outside: bool, out_outside: bool) -> None:
    """Two for each operand that comes from outside, where there is a next piece; one for a result that goes there."""
    a, b, out = (Region((total,), CODING, 0, external=outside) for outside in (a_outside, b_outside, out_outside))
    ahead = 2 if piece < total else 1
    wanted = ahead * (a_outside + b_outside) if a_outside or b_outside else int(out_outside)
    assert add_buffers(piece, a, b, out) == [piece] * wanted
