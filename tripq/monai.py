"""tripq in MONAI: a transform that reads a scan with its table, and networks on dense volumes.

MONAI's transforms, losses and inferers take dense tensors, channels first; the networks of tripq
take the voxels of a mask and a graph.  `LoadDWId` reads a scan, and `VolumeNetwork` converts dense
tensors to features on a graph and back (`tripq.PQGraph.gather`, `tripq.PQGraph.scatter`).

Needs MONAI: ``pip install 'tripq[bench]'``.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from monai.utils import convert_to_dst_type
from torch import Tensor, nn

from tripq.domain.graph import PQGraph
from tripq.networks.blocks import graph_radius
from tripq.networks.checkpoint import load_network
from tripq.scans import Frame, read_dwi

__all__ = ["LoadDWId", "VolumeNetwork", "apply_network", "load_volume_network"]


class LoadDWId(MapTransform):
    """Read diffusion scans with the gradient tables beside them.

    The path ``data[key]`` becomes the signal divided by b0, (Q, X, Y, Z) float32, a `MetaTensor`
    with the affine of the scan: the mean of the b0 volumes first, then the diffusion-weighted
    volumes, 0 outside the mask.  ``data[key + "_q"]`` becomes the q-vectors, (Q, 3) float32 in
    world axes, and ``data[key + "_mask"]`` the mask, (1, X, Y, Z) bool; if it is a path before,
    that mask is read.

    Parameters
    ----------
    keys : str or sequence of str
        Keys of the paths.
    frame : {"fsl", "voxel", "world"}
        Axes of the gradient directions; see `tripq.scans.read_dwi`.
    b0_contrast : bool
        Whether the first channel is `tripq.scans.DWI.b0_contrast` instead of 1, for a network that
        reads it.
    allow_missing_keys : bool
        Whether keys may be missing.

    Raises
    ------
    tripq.scans.DWIError
        If a file is missing or damaged; the message names it.
    """

    def __init__(
        self,
        keys: KeysCollection,
        frame: Frame = "fsl",
        b0_contrast: bool = False,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.frame = frame
        self.b0_contrast = b0_contrast

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Read the scans of one dictionary."""
        read = dict(data)
        for key in self.key_iterator(read):
            dwi = read_dwi(read[key], mask=read.get(f"{key}_mask"), frame=self.frame)
            if self.b0_contrast:
                dwi.signal[:, 0] = dwi.b0_contrast
            signal = torch.from_numpy(dwi.volume(dwi.signal)).movedim(-1, 0).contiguous()
            about = {"filename_or_obj": str(read[key])}
            affine = torch.from_numpy(dwi.affine)
            mask = torch.from_numpy(dwi.mask)[None]
            read[key] = MetaTensor(signal, affine=affine, meta=dict(about))
            read[f"{key}_q"] = torch.from_numpy(dwi.q).float()
            read[f"{key}_mask"] = MetaTensor(mask, affine=affine, meta=dict(about))
        return read


class VolumeNetwork(nn.Module):
    """A network of tripq on dense volumes, channels first.

    Parameters
    ----------
    network : Module
        Takes the signal (V, Q) and a graph, such as `tripq.networks.VoxelNetwork`.
    q : Tensor of shape (Q, 3), optional
        q-vectors in world axes of scans that are given without any.
    affine : Tensor of shape (4, 4), optional
        Voxel axes in mm of scans that are given without any.
    """

    def __init__(
        self, network: nn.Module, q: Tensor | None = None, affine: Tensor | None = None
    ) -> None:
        super().__init__()
        self.network = network
        self.q = q
        self.affine = affine

    def forward(
        self,
        image: Tensor,
        q: Tensor | None = None,
        affine: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Output of the network in every voxel.

        Parameters
        ----------
        image : Tensor of shape (B, Q, X, Y, Z)
            Signal divided by b0 of B scans with one table on one grid.
        q, affine : Tensors of shape (Q, 3) and (4, 4), optional
            Their q-vectors and voxel axes, in place of those of the constructor.  The origin of the
            affine has no effect.
        mask : Tensor of shape (B, 1, X, Y, Z), optional
            Voxels in which the network is evaluated; all by default.

        Returns
        -------
        Tensor of shape (B, C, X, Y, Z)
            0 outside the mask.  If the image is a `MetaTensor`, so is the output, with the metadata
            of the image, as of MONAI's inferers.

        Raises
        ------
        ValueError
            If there are no q-vectors or no affine, or another number of them than of channels.
        """
        q = self.q if q is None else q
        affine = self.affine if affine is None else affine
        if q is None or affine is None:
            raise ValueError("the network needs q-vectors and an affine, here or when it is made.")
        if image.ndim != 5 or len(q) != image.shape[1]:
            raise ValueError(
                f"the image must be (B, Q, X, Y, Z) with Q = {len(q)} q-vectors, not "
                f"{tuple(image.shape)}."
            )
        # Back ends allocate results, which tensors with metadata cannot in every way.
        plain = torch.as_tensor(image).as_subclass(Tensor)
        x = plain.movedim(1, -1)[:, None]  # (B, 1, X, Y, Z, Q)
        masks = torch.ones_like(x[:, 0, ..., 0], dtype=torch.bool) if mask is None else mask[:, 0]
        radius = graph_radius(self.network)
        axes, table = (torch.as_tensor(t).cpu().numpy() for t in (affine, q))
        grids = [torch.as_tensor(one).cpu().bool().numpy() for one in masks]
        graph = PQGraph.merge([PQGraph.from_grid(grid, axes, table, radius) for grid in grids])
        graph = graph.to(image.device)
        output = self.network(graph.gather(x)[..., 0], graph)
        volume: Tensor = graph.scatter(output if output.ndim == 2 else output[:, None])
        volume, *_ = convert_to_dst_type(volume, image, dtype=volume.dtype)
        return volume


def load_volume_network(
    path: str | Path, q: Tensor | None = None, affine: Tensor | None = None
) -> VolumeNetwork:
    """Load a checkpoint as a `VolumeNetwork`, in evaluation mode.

    Parameters
    ----------
    path : path
        A file of `tripq.networks.checkpoint.save_network`.
    q, affine : Tensors of shape (Q, 3) and (4, 4), optional
        See `VolumeNetwork`.

    Raises
    ------
    tripq.networks.checkpoint.CheckpointError
        If the file is missing, damaged or holds something else.
    """
    return VolumeNetwork(load_network(path), q, affine).eval()


def apply_network(
    network: VolumeNetwork, data: Mapping[Hashable, Any], key: str = "dwi"
) -> dict[Hashable, Any]:
    """Evaluate a network on a scan of `LoadDWId`.

    Parameters
    ----------
    network : VolumeNetwork
        The network.
    data : mapping
        With the scan, its q-vectors and its mask.
    key : str
        Key of the scan.

    Returns
    -------
    dict
        The data, and the output (C, X, Y, Z) under ``"pred"``, with the metadata of the scan.
    """
    image, mask = data[key], data[f"{key}_mask"]
    with torch.no_grad():
        output = network(image[None], data[f"{key}_q"], image.affine, mask[None])[0]
    return {**data, "pred": output}
