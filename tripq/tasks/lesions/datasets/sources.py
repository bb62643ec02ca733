"""Sources of the open cohort: origin, licences and local files."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from types import ModuleType

from tripq.infra.files import read_text
from tripq.tasks.layout import DatasetError, Licence

_OPEN_MS = (
    "https://raw.githubusercontent.com/muschellij2/open_ms_data/"
    "65704901f60650824565aa5a4818611aa89716f4/cross_sectional"
)
_ATLAS = (
    "https://raw.githubusercontent.com/frankyeh/DSI-Studio-atlas/"
    "bf5afab9b2405f076b1acdf4706c9688525eb713/ICBM152_adult"
)


LICENCES = (
    Licence(
        "Creative Commons Attribution (CC-BY)",
        "the outlines of lesions and brains",
        "cite Lesjak, Pernus, Likar and Spiclin, Neuroinformatics (2017), "
        "doi:10.1007/s12021-017-9348-7, in published work.",
    ),
    Licence(
        "WU-Minn HCP Open Access Data Use Terms",
        "the HCP1065 template of fibre directions",
        "redistribute it, and what is derived from it, under the same terms; acknowledge the "
        "WU-Minn Consortium (1U54MH091657); cite Yeh, Nat Commun 13:4933 (2022).",
    ),
)
"""Licences of all sources of the cohort."""


@dataclass(frozen=True)
class Source:
    """A file to download.

    Parameters
    ----------
    name : str
        Its path in the folder of sources.
    url : str
        Its address, at one commit of a public repository.
    sha256 : str
        SHA-256 of its content.
    """

    name: str
    url: str
    sha256: str


def _lesion_name(patient: str) -> str:
    return f"open_ms/patient{patient}_lesions_MNIrigid_1mm.nii.gz"


def _brain_name(patient: str) -> str:
    return f"open_ms/patient{patient}_brainmask.nii.gz"


_INFO_NAME = "open_ms/patient_info.csv"
_FIBRES_NAME = "ICBM152_adult.fib.gz"

# SHA-256 for patients 01, 02, ..., 30
_LESION_DIGESTS = (
    "f35bd723ac2af1b179522f53de48e45ce485c5864e4f6954d24d684140ba0533",
    "62a02ff02aa9436b725c10fdaa306ba4ad871eeaec6ae8957e68d8277daf69fa",
    "96d23738bc231b468a408b126eb81ff1d269c789092b36eb3965b63eece74db7",
    "68d1ee8e46973d5fa5cc34b98dcb92c40a3c84697f12ea4a25d65d57fe67ca1d",
    "43c91761077c98b9cc1852e0c787eae777a4aeb0e950210e17222754e947fabf",
    "69986000daad68319d2716d2ac502812d6b2f6ef0e0ad6c34c085fa72d552300",
    "811e8c906d572e8675c67c98176d0e883ec87655ebea89f31da407a18fb1aae7",
    "5fba14c25dd9be5dddd8b81e05a4aea74d6f06fc4b96406cc7dab0ebccf8330a",
    "466e9af9fdd0e1f33a6a814c46c5c90094188dd7b518a5dc213786fda13a4e09",
    "38add431d615795b2e3a4c121195ed3fedffff2aeda6109d66f65dec0e3bd1d4",
    "a3f68e183368ee9992ba54e50aa8f7fa15aaf58fea87ccc136d5c7ada1b6f2a4",
    "daf9a5cf97b7cb8ac3a3a6df7259bed024dd7f0d072921dd4972168bac068b15",
    "8aa2646ec883b38a97c4ca9570768621a8b29662151f9762d08168b9f7a548b4",
    "7cfc8ac5d2f92225993f0cc26549223a04d8fa35657536faf32defecd63d08f7",
    "715f3693c0187732a3d8599f613cfa73b12a1e870dc3088267e6cfbf3f351895",
    "e7bfc3d2842c7342d24091786af5b0bd05f4c918cff2025d8ac12aeff1160da8",
    "c44b76e7c1e58ce318ef7c93042240a9e8d9ddea138f09506f8417b906bceb01",
    "f3363a7528c640fe0e709ea5b86a331315eb1bd1418a721232bc3c364910c5e3",
    "1cf465372d5e647fb5a2f1ac062fe314e7aa7f0873c68108617530541f2362c4",
    "69af75532e7c6d489436cf5c171ebc5be34fb1f5be23490b044132e40ba83ce1",
    "de4f85bf49ff5db8467406ee38dcc46ce36495ddb3032351ae4ba293544f3bcc",
    "c7d4dd4027ee837fdc503b15bec891a40536d1e42c970aac8647a57fb59901cc",
    "407791ad604ae41d63c1198043ef60e46d419657863672d23c6d17c5a4a002ff",
    "2c3d8bf26232a87b3c0dcede98158dc4ebdd7d07bacf26fd4741809c0b607f2c",
    "9d85fef82222b64e4c9ae48f4f0cd4513a52bc7908c66d91c83fab98a69097ed",
    "5a9cc6ffbe3a5d2df67fba4207c0585b2f02a5f9f7f31e0e7e3f57cc59c2c5ac",
    "b96a0bb234c376e6fec72ddcdddbd46c89b2c5fe6c49bca26e8cbd5fd289e736",
    "fc0a805af095c3e690010f5cd017ae16c9a44df4f0e815eb8269cbf14217b836",
    "e4902823fa61bba3653d31dc6f8a8efa401dd803482177d2d0477815c526b154",
    "8269fdbe682cff122bac43786900e258f2264c4b646e1849c83d92fe7d6dd702",
)
_BRAIN_DIGESTS = (
    "793d786de8742c96b0394fe9931a18c12f4df389edb307c1838d3dedb2fff7fa",
    "eab5e872c73ada65d586bc8a6b2cb90965f2f00653dd974c03e26f530a911c62",
    "5121ed1bbcc94b3e7549d8bd5a3b2e149b8da55e5c5b2c2131fc32cd8a559405",
    "36a4d1fcf341553c0de7e17adfb51212e67fb84c46538b8fb882314408e694d2",
    "24ac9604c6c5680bbd3a9bc358a21c2550af00f23e50424ecd6732b3da7b6fea",
    "089aed63bd4466f10c7671983f4436da3a12723813de586a3714a3dfecad6bc2",
    "42897456d3c8cf7240cb3ac5fb9f2f07bfa641e2a44abff2a6c1415c4c3663d5",
    "fba62ab59ac79eefcc898375550320fb5a828d44c82898cb8fd7a6321464e756",
    "a1b2c7baa0f81452df2ed1c5765fa9da4cd6fd44ef82289f7441e9e88dd849bf",
    "d392b00da2c589776f709c2f91aad2262148b5bb8c90a5b22bd3244027652cfa",
    "f39228a3281264c826ebee1cfcbe09d3759c06838a14c46ee445112e385da971",
    "187adcabc8632c5bdef2b722b19e3f599cce65de03d50357d337e8638e06951d",
    "94fed405556c33b271c70b059aa096de4eb89b4304abe5d726a1cfab94491ca6",
    "695247ded53bfe271cf11c9423763ec92968df019b98500328699a39cf320af5",
    "792d2f77a4e9c8b190704539aef319b81c17644e8943b9030a94d86606173837",
    "51f29d6bc96425bcf4c7241a46760e29f140166d6590e57d242212ac5c6f94ee",
    "35ebb433b5523f9fd5301bbcf0aeaedb00249b55e803bf8a5f9ebff284d219d2",
    "c2f235d65657056118175226990121e40f6345a65de55c1223f150e5d752fc02",
    "858bb144bacebd582ba8c1785f208828968c5a66b5de6326659aa598eab820c3",
    "7d931f49eeb5e75b1da83b1f1a909214c630e50244ab9d24a17a61b45c4c00d8",
    "cd3d90ad232c243a899b91bf20b44591cb80db6dfece813da3ffcd5d2ec49fae",
    "35db3b1b36d6e2cd7640ae034e5a51760944a8b4f96c7c62545aa7892334eb25",
    "2b41db3046b85e5544b4ad1d74ee6d9afc7202abc0ead8168236f70b94336703",
    "bf896fb25bea5d7f7c9185e0500069f0bbf47eab1a991c41da04256859f483d0",
    "ec8f8b6740d09e75e51ac84b30729d515537c41d9430cb1c8d1f3d0d824ff72c",
    "ffdc45cd6fa1ecf743354d58ad081a5a49e8efa55093de75c291b0dd530d3293",
    "3a92e6ae0f35ee5c0a1d9f875ef358840dcefeb111405ae6789e092296d194a2",
    "4e90cbf6b179c484e91302a105a4efd6a61817f70b9dd70876222cefbf88d29e",
    "b8f13fbce1443bc10ed73b27b2bd7b914736dedd5ab8d515c35d4df69537dbcd",
    "fdd809838ab4caf2c508999ce739d21f7d96e0bdf5e0455d5f7b8be88073052c",
)


def _sources() -> tuple[Source, ...]:
    registered = "GOLD_STANDARD_N4_noneck_reduced_winsor_regtoFLAIR_regtoMNI.nii.gz"
    sources = [
        Source(
            _INFO_NAME,
            f"{_OPEN_MS}/patient_info.csv",
            "2bfdc5522204e9e52e1736939759e558364049b87658c17d74685e551a0b126b",
        ),
        Source(
            _FIBRES_NAME,
            f"{_ATLAS}/ICBM152_adult.fib.gz",
            "c6b39bbbbbee090d070e26c8b1b9fb943e89eeca19ec6f133d88ca9bd461ed99",
        ),
    ]
    digests = zip(_LESION_DIGESTS, _BRAIN_DIGESTS, strict=True)
    for number, (of_lesions, of_brain) in enumerate(digests, start=1):
        patient = f"{number:02}"
        lesions = f"{_OPEN_MS}/MNI/patient{patient}/{registered}"
        brain = f"{_OPEN_MS}/coregistered_resampled/patient{patient}/brainmask.nii.gz"
        sources.append(Source(_lesion_name(patient), lesions, of_lesions))
        sources.append(Source(_brain_name(patient), brain, of_brain))
    return tuple(sources)


SOURCES = _sources()
"""All source files of the cohort of 30 patients."""


@dataclass(frozen=True)
class OpenMS:
    """The sources of the cohort in a folder; `open_ms` returns them.

    The sources are consensus masks of lesions at 1 mm, registered rigidly to the ICBM152 template,
    and masks of the unregistered brains, for their volumes (Lesjak et al. 2017), and the fibres of
    the HCP1065 template (Yeh 2022).

    Parameters
    ----------
    folder : Path
        Folder with ``open_ms/patientNN_lesions_MNIrigid_1mm.nii.gz``,
        ``open_ms/patientNN_brainmask.nii.gz``, ``open_ms/patient_info.csv`` (optional) and
        ``ICBM152_adult.fib.gz``.
    """

    folder: Path

    @property
    def patients(self) -> tuple[str, ...]:
        """Numbers of the patients with a lesion file, such as ``"01"``, sorted."""
        found = (
            re.match(r"patient(\d+)_lesions", path.name)
            for path in self.folder.glob(_lesion_name("*"))
        )
        return tuple(sorted(match[1] for match in found if match))

    def choose(self, patients: Sequence[str] | None) -> tuple[str, ...]:
        """These patients, or all; `DatasetError` if one is not among the sources."""
        chosen = self.patients if patients is None else tuple(patients)
        if missing := sorted(set(chosen) - set(self.patients)):
            raise DatasetError(f"{self.folder}: no lesions of patient {', '.join(missing)}.")
        return chosen

    def lesions(self, patient: str) -> Path:
        """Outlines of a patient's lesions."""
        return self.folder / _lesion_name(patient)

    def brain(self, patient: str) -> Path:
        """Mask of a patient's brain."""
        return self.folder / _brain_name(patient)

    @property
    def fibres(self) -> Path:
        """The HCP1065 template, a ``.fib.gz`` of DSI Studio."""
        return self.folder / _FIBRES_NAME

    def about(self, patient: str) -> dict[str, str]:
        """Age, sex, type of the disease and EDSS of a patient, without unknown entries."""
        path = self.folder / _INFO_NAME
        if not path.is_file():
            return {}
        table = csv.DictReader(io.StringIO(read_text(path), newline=""))
        rows = [row for row in table if row["patient_id"] == str(int(patient))]
        columns = ("age", "sex", "ms_type", "edss")
        return {name: row[name] for row in rows for name in columns if row[name] != "N/A"}


def open_ms(
    *,
    accept_licences: bool = False,
    local: str | PathLike[str] | None = None,
    cache: str | PathLike[str] | None = None,
) -> OpenMS:
    """Download the sources of the cohort, 10 MB, or use a local folder.

    Parameters
    ----------
    accept_licences : bool
        Whether you accept `LICENCES`, which are printed.
    local : path, optional
        Folder with the sources, of all or some patients, instead of a download; see `OpenMS`.  Its
        files are not verified.
    cache : path, optional
        Folder of the downloads; by default the user's cache. Existing files are not downloaded
        again.

    Returns
    -------
    OpenMS

    Raises
    ------
    DatasetError
        If the licences are not accepted, a file cannot be downloaded or has another hash, the local
        folder has no patients or no fibres, or pooch is needed and not installed.
    """
    listed = "\n".join(f"* {licence}" for licence in LICENCES)
    if not accept_licences:
        raise DatasetError(
            f"the open MS cohort has these licences:\n{listed}\n"
            "Read them, and pass accept_licences=True if you accept them."
        )
    print(f"Licences that you have accepted:\n{listed}")
    if local is None:
        return OpenMS(_fetch(_import_pooch(), cache))
    sources = OpenMS(Path(local))
    if not sources.patients:
        raise DatasetError(f"{local}: no {_lesion_name('NN')} in this folder.")
    needed = [sources.fibres, *map(sources.brain, sources.patients)]
    for path in needed:
        if not path.is_file():
            raise DatasetError(f"{path}: there is no such file.")
    return sources


def _import_pooch() -> ModuleType:
    try:
        import pooch
    except ImportError as error:
        raise DatasetError(
            "the download needs pooch, which is not installed: pip install 'tripq[ms]', or give a "
            "folder with the files: local=..."
        ) from error
    return pooch


def _fetch(pooch: ModuleType, cache: str | PathLike[str] | None) -> Path:
    """Download missing files; return their folder."""
    folder = pooch.os_cache("tripq") / "open_ms_cohort" if cache is None else Path(cache)
    shelf = pooch.create(
        path=folder,
        base_url="",
        registry={source.name: f"sha256:{source.sha256}" for source in SOURCES},
        urls={source.name: source.url for source in SOURCES},
    )
    for source in SOURCES:
        try:
            shelf.fetch(source.name)
        except (OSError, ValueError) as error:  # no network; another hash
            raise DatasetError(f"{source.url}: cannot be downloaded: {error}") from error
    return folder
