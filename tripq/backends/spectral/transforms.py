r"""Fourier transforms of boxes of a grid.

Boxes and spectra have places or frequencies first and features last, as layers do.  Along the last
axis of the grid half of the frequencies are enough.

On a CPU each axis is one product with a matrix of cosines and sines.  Tiles are a few dozen voxels
long: there this takes about as long as a fast Fourier transform, but voxels stay the rows of all
arrays, and a transposition would take longer than either.  Places that are zero, or not wanted,
take no time.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import pi, prod

import torch
from torch import Tensor

from tripq.infra.chunks import chunks
from tripq.infra.kept import kept

#: Numbers of voxels along the three axes.
Shape = tuple[int, int, int]

# Bytes of a spectrum, for each thread, that are transformed along all axes before the next.
_CACHED = 1 << 21

# Products are slower if rows are not a whole number of vector registers long.
_ALIGNED = 16


def frequencies(shape: Shape) -> Shape:
    """Frequencies along the axes of a ring of real numbers."""
    return (shape[0], shape[1], shape[2] // 2 + 1)


def ring_length(least: int, device: torch.device) -> int:
    """The next length that is fast: with small prime factors, if it is for a fast transform."""
    if device.type == "cpu":
        return least
    rest = least
    for p in (2, 3, 5, 7):
        while rest % p == 0:
            rest //= p
    return least if rest == 1 else ring_length(least + 1, device)


def work_of_transform(shape: Shape, device: torch.device) -> int:
    """Multiply-adds for each place and feature; on a GPU nearly the same for all shapes."""
    return 2 * shape[0] + 2 * shape[1] + shape[2] if device.type == "cpu" else 1


def transform(box: Tensor, shape: Shape) -> Tensor:
    """The Fourier transform of rings that are zero beyond a box.

    Parameters
    ----------
    box : Tensor of shape (B, x, y, z, N)
        The first places of B rings.
    shape : (int, int, int)
        Of the rings.

    Returns
    -------
    Tensor of shape (B, 2, F, N)
        Real and imaginary parts.
    """
    return (transform_by_products if box.device.type == "cpu" else transform_by_fft)(box, shape)


def transform_back(spectrum: Tensor, shape: Shape, core: Shape) -> Tensor:
    """The inverse of `transform`, at the first places.

    Parameters
    ----------
    spectrum : Tensor of shape (B, 2, F, N)
        Real and imaginary parts.
    shape : (int, int, int)
        Of the rings.
    core : (int, int, int)
        Of the box that is wanted.

    Returns
    -------
    Tensor of shape (B, x, y, z, N)
    """
    on_cpu = spectrum.device.type == "cpu"
    return (transform_back_by_products if on_cpu else transform_back_by_fft)(spectrum, shape, core)


def transform_by_fft(box: Tensor, shape: Shape) -> Tensor:
    """`transform` by fast Fourier transforms."""
    spectrum = torch.fft.rfftn(box, s=shape, dim=(1, 2, 3)).flatten(1, 3)
    return torch.view_as_real(spectrum).permute(0, 3, 1, 2).contiguous()


def transform_back_by_fft(spectrum: Tensor, shape: Shape, core: Shape) -> Tensor:
    """`transform_back` by fast Fourier transforms."""
    x, y, z = core
    numbers = torch.view_as_complex(spectrum.permute(0, 2, 3, 1).contiguous())
    grid = numbers.unflatten(1, frequencies(shape))
    return torch.fft.irfftn(grid, s=shape, dim=(1, 2, 3))[:, :x, :y, :z].contiguous()


def transform_by_products(box: Tensor, shape: Shape) -> Tensor:
    """`transform` by a matrix for each axis."""
    n_boxes, x, y, z, n = box.shape
    _, n_y, n_z = frequencies(shape)
    along_x, along_y, along_z = _matrices(shape, (x, y, z), box)
    result = box.new_empty(n_boxes, 2, prod(frequencies(shape)), n)
    for boxes, columns in _blocks(result):
        width = columns.stop - columns.start
        t = _product(along_z, box[boxes, ..., columns].reshape(-1, z, width))
        t = _product(along_y, t.view(-1, 2 * y, n_z * width))
        t = _product(along_x, t.view(-1, 2 * x, n_y * n_z * width))
        result[boxes, ..., columns] = t.view(-1, *result.shape[1:3], width)
    return result


def transform_back_by_products(spectrum: Tensor, shape: Shape, core: Shape) -> Tensor:
    """`transform_back` by a matrix for each axis."""
    n_x, n_y, n_z = frequencies(shape)
    x, y, z = core
    along_x, along_y, along_z = _matrices(shape, core, spectrum)
    weights = torch.cat([frequency_weights(shape, spectrum)] * 2) / prod(shape)
    along_z = along_z * weights[:, None]
    result = spectrum.new_empty(len(spectrum), x, y, z, spectrum.shape[-1])
    for boxes, columns in _blocks(spectrum):
        width = columns.stop - columns.start
        t = spectrum[boxes, ..., columns].reshape(-1, 2 * n_x, n_y * n_z * width)
        t = _product(along_x.T, t)
        t = _product(along_y.T, t.view(-1, 2 * n_y, n_z * width))
        t = _product(along_z.T, t.view(-1, 2 * n_z, width))
        result[boxes, ..., columns] = t.view(-1, x, y, z, width)
    return result


def frequency_weights(shape: Shape, like: Tensor) -> Tensor:
    """How often each frequency along the last axis stands for itself and its opposite."""
    twice = like.new_full((shape[2] // 2 + 1,), 2.0)
    twice[0] = 1.0
    if shape[2] % 2 == 0:
        twice[-1] = 1.0
    return twice


def _blocks(spectrum: Tensor) -> Iterator[tuple[slice, slice]]:
    """Boxes and features that are transformed together, in the cache."""
    held, n = _CACHED * torch.get_num_threads(), spectrum.shape[-1]
    a_feature = spectrum[0, ..., 0].numel() * spectrum.element_size()
    for boxes in chunks(len(spectrum), n * a_feature, held):
        number = boxes.stop - boxes.start
        for some in chunks(-(-n // _ALIGNED), _ALIGNED * number * a_feature, held):
            yield boxes, slice(_ALIGNED * some.start, min(_ALIGNED * some.stop, n))


def _product(matrix: Tensor, t: Tensor) -> Tensor:
    """One matrix (m, k) times each of several (b, k, n)."""
    return torch.bmm(matrix.expand(len(t), *matrix.shape), t)


def _matrices(shape: Shape, box: Shape, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of the transform along each axis, from as many places as a box has."""
    along_x, along_y = (
        _of_complex(n, m, like.dtype) for n, m in zip(shape[:2], box[:2], strict=True)
    )
    return along_x, along_y, _of_real(shape[2], box[2], like.dtype)


@kept
def _of_real(n: int, places: int, dtype: torch.dtype) -> Tensor:
    """From real numbers to real parts of half the frequencies, then imaginary parts."""
    cosine, sine = _waves(n, n // 2 + 1, places)
    return torch.cat([cosine, -sine]).to(dtype)


@kept
def _of_complex(n: int, places: int, dtype: torch.dtype) -> Tensor:
    """From complex numbers, parts last, to all real parts, then all imaginary parts."""
    cosine, sine = _waves(n, n, places)
    real, imaginary = torch.stack([cosine, sine], -1), torch.stack([-sine, cosine], -1)
    return torch.cat([real, imaginary]).flatten(1).to(dtype)


def _waves(n: int, n_frequencies: int, places: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines (frequency, place) on a ring of n places, float64."""
    f, p = (torch.arange(m, device="cpu") for m in (n_frequencies, places))
    turns = f[:, None] * p % n
    angle = 2 * pi / n * turns.double()
    return angle.cos(), angle.sin()
