"""Train an encoder of tripq in a loop of MONAI, on simulated scans: transforms, loader and loss."""

from __future__ import annotations

import argparse
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from monai.data import DataLoader, Dataset
from monai.losses import DiceCELoss
from monai.transforms import Compose, EnsureChannelFirstd, LoadImaged

from tripq.monai import LoadDWId, VolumeNetwork
from tripq.networks import VoxelNetwork
from tripq.simulate import GradientTable, default_anatomy
from tripq.tasks.lesions.simulate import simulate_subject, write_subject


def main() -> None:
    """Write two simulated scans, train on them, and print the loss before and after."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=20)
    torch.manual_seed(0)
    anatomy = default_anatomy(5.0).within((-60, -60, 0), (60, 60, 40))
    table = GradientTable.from_shells([1000.0], [12])
    network = VolumeNetwork(
        VoxelNetwork(q_features="8x0e + 4x2e", p_features="8x0e + 2x1o", n_p_layers=1)
    )
    loss = DiceCELoss(sigmoid=True)
    optimiser = torch.optim.Adam(network.parameters(), lr=0.02)
    read = Compose(
        [LoadDWId("dwi"), LoadImaged("lesion"), EnsureChannelFirstd("lesion")],
    )
    with TemporaryDirectory() as name:
        files = []
        for seed in (1, 2):
            folder = Path(name, str(seed))
            write_subject(simulate_subject(anatomy, table, seed), folder)
            scan = {"dwi": "dwi.nii.gz", "dwi_mask": "mask.nii.gz", "lesion": "lesion.nii.gz"}
            files.append({key: str(folder / file) for key, file in scan.items()})
        scans = DataLoader(Dataset(files, read), batch_size=1)
        losses = []
        for _ in range(parser.parse_args().steps):
            for scan in scans:
                image, mask = scan["dwi"], scan["dwi_mask"]
                output = network(image, scan["dwi_q"][0], image.affine[0], mask)
                error = loss(output * mask, scan["lesion"] * mask)
                optimiser.zero_grad()
                error.backward()
                optimiser.step()
                losses.append(error.item())
    print(f"loss: {losses[0]:.3f} to {losses[-1]:.3f}")


if __name__ == "__main__":
    main()
