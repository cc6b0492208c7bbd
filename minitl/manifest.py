"""Pretrained MobileNets that their makers publish: where each file is, and what is known of it.

Leaves: ENTRIES, {name: Entry}. A name is MAKER-NETWORK_ALPHA_SIZE, then what tells files of one maker apart; Keras' files without
classifier have the plain name, those with one end in -top. What a maker does not state is None: nothing is guessed here. Left out: fetching
(pull.py); datasets; timm's mobilenetv2_110d and _120d, which are deeper than the networks of architectures/.

A checksum is HASH:DIGITS; makers that put the first 8 digits of the SHA-256 into the name of a file give those alone. Google publishes none
for its tarballs: theirs were recorded by a public Yocto recipe. Accuracy is ImageNet's top-1 in percent, as the maker states it, for the
network in float.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from .files import cache_folder

V1, V2 = "mobilenet_v1", "mobilenet_v2"
SIZES_V1, SIZES_V2 = (224, 192, 160, 128), (224, 192, 160, 128, 96)


@dataclass(frozen=True)
class Entry:
    """A file to fetch. side: height and width of the network's input. bytes: its exact size. mirror: where it was published before."""

    name: str
    url: str
    format: str
    architecture: str
    alpha: float
    side: int
    bytes: int | None = None
    checksum: str | None = None
    licence: str | None = None
    accuracy: float | None = None
    mirror: str | None = None

    @property
    def kept(self) -> Path:
        """Where pull.py keeps what it made of this file."""
        return cache_folder() / "weights" / f"{self.name}.npz"


# ---- Keras: keras/src/applications/mobilenet.py and mobilenet_v2.py, which check no hash

KERAS = "https://storage.googleapis.com/tensorflow/keras-applications"
KERAS_LICENCE = "Apache-2.0 / MIT"
OLD_V1 = "https://github.com/fchollet/deep-learning-models/releases/download/v0.6"
OLD_V2 = "https://github.com/JonathanCMitchell/mobilenet_v2_keras/releases/download/v1.1"
KERAS_KNOWN: dict[str, tuple[int, str | None]] = {  # bytes, checksum
    "mobilenet_1_0_224_tf_no_top.h5": (17_225_924, None),
    "mobilenet_2_5_224_tf_no_top.h5": (2_108_140, "sha256:dbdb03ee2a22fd895301636cd328b234bb3a9952358f436d82f46b81e0d5b0bf"),
}


def _keras() -> Iterator[Entry]:
    alphas = {1.0: "1_0", 0.75: "7_5", 0.5: "5_0", 0.25: "2_5"}
    v1 = [(V1, a, s, f"mobilenet_{text}_{s}_tf", "mobilenet", OLD_V1) for a, text in alphas.items() for s in SIZES_V1]
    v2 = [
        (V2, a, s, f"mobilenet_v2_weights_tf_dim_ordering_tf_kernels_{a}_{s}", "mobilenet_v2", OLD_V2)
        for a in (1.4, 1.3, 1.0, 0.75, 0.5, 0.35)
        for s in (SIZES_V2 if a <= 1 else (224,))
    ]
    for network, alpha, side, stem, folder, old in v1 + v2:
        for end, suffix in (("", "_no_top"), ("-top", "")):
            file = f"{stem}{suffix}.h5"
            size, checksum = KERAS_KNOWN.get(file, (None, None))
            yield Entry(f"keras-{network}_{alpha}_{side}{end}", f"{KERAS}/{folder}/{file}", "keras-h5", network, alpha, side,
                        size, checksum, KERAS_LICENCE, mirror=f"{old}/{file}")  # fmt: skip


# ---- TensorFlow: research/slim/nets/mobilenet_v1.md and nets/mobilenet/README.md

TF_V1 = "https://storage.googleapis.com/download.tensorflow.org/models/mobilenet_v1_2018_02_22"
TF_V2 = "https://storage.googleapis.com/mobilenet_v2/checkpoints"
TARBALLS = {  # (network, alpha): (accuracy, SHA-256) for the sizes from 224 down
    (V1, 1.0): [
        (70.9, "1ccb74dbd9c5f7aea879120614e91617db9534bdfaa53dfea54b7c14162e126b"),
        (70.0, "ad683fb270cd1b0f49c820c4acf5fcbbfa546ae354b1345a4fff5f19f99d7c44"),
        (68.0, "1f612ebeda0e7e149897273c445b790ca8924a8a1488e6a61d36166a562fd89c"),
        (65.2, "d16f3102c1cb087eacf94c6a5abf0477767158fb891b2710409472bca4d988a8"),
    ],
    (V1, 0.75): [
        (68.4, "bf61b3ce7ca2d045bb35fa6ab9a68732e3531291266db4a8c7715227d7425657"),
        (67.2, "3d91d279cd06c055500aabdff8dfbd51a63797c7bb6b3f9a39e243f7c13997e9"),
        (65.3, "90b3f26406a89df489373358aa89d9db7bcb66d2400160f16f3687f79e4f66b2"),
        (62.1, "54a28065f6f230d0b71cf8fbbc50bbb89b4fdfada8e7e2a622da68b971d5ab97"),
    ],
    (V1, 0.5): [
        (63.3, "0eb9be8d18dcf9466a2a2d2157e71c83cd70dc168255d76d72bfe965318db725"),
        (61.7, "57c81cc48349d1079377f8cdeed3f017500aeb98a12f16c6ed2086a50848ecb6"),
        (59.1, "fb01b76ca1fb053e5f98d297e21c6c53d0d9f6a8b02ad2e88ac22b33b2adf729"),
        (56.3, "5a0def0d844327526385b110cdcaa6428d0828ff6d07515ef25bf3976e049d88"),
    ],
    (V1, 0.25): [
        (49.8, "eee166d4d1de004e2ee5de19a4f5045574d764ef59569dc284545f805a295074"),
        (47.7, "4889d7afabc31011f5218f6111532947ff7d5b6b9368afe1f152c67c6f30ea73"),
        (45.5, "8eb4540af0227e5e59849c41ca6da6f07e257cca887ec0f8cd33aeb46f1405cf"),
        (41.5, "34c52de7562259f66399993ef5ea222cc625d2e6f6f886a01fdc6cc99a0c7ee6"),
    ],
    (V2, 1.4): [(75.0, "a20d0c8d698502dc6a620528871c97a588885df7737556243a3412b39fce85e0")],
    (V2, 1.3): [(74.4, "b04129d44a46e0eb409c1a2bc255472ebdd57f9c091812e7866d79d0cc7fecaa")],
    (V2, 1.0): [
        (71.8, "318084bc1b63d6d7b854553e09cdf77078b1c0168be27c59a0d44253b5ed49dc"),
        (70.7, "e8d9cd7c571f375c80945b5f889705ae412db32d3419d747e796429e39132f48"),
        (68.8, "e374bc70066dde0c3af6cb4c98ecd8707800d71d11353c4cc359b3069415f23e"),
        (65.3, "f692e341cf1529df4f7e68ed13d0284ad8796ade1108f802eec135abc1fc1b83"),
        (60.3, "8f0377b71d79f5626c5198f248b476d2604b3e4e596ca4076e1b1f8fcd3f3844"),
    ],
    (V2, 0.75): [
        (69.8, "335cd22c7e1c5e80205dedd6e2ff5d1d8af5c29074496eb047fd621349e10cc5"),
        (68.7, "40efef9324376d47b872d1cd6e4de8ba7c9323b6203252aa66dc2b2413e0dc8d"),
        (66.4, "904d1a1f84c329ad766464d132f697e96814685853c45c6ee4dd21877ada36bc"),
        (63.2, "9ac932679a9fb1304bc1435bb7fa30e1b2fcaa7f49e0902da24d154ec83f9302"),
        (58.8, "bdf06eec5478dbb1bb9e01648637d8acd4cc500f72e1a3dad01ba45642e31e6f"),
    ],
    (V2, 0.5): [
        (65.4, "813febbdbe2a7a50055ee2f6b374938aed03e2f607f63f3479622aefc4e12b00"),
        (63.9, "5a344ed91cded5d420b6c65d47343ee60b43b570953b0feed4ee95451a679dd5"),
        (61.0, "f89c879b1a45c5d677ad7fe499f08a7854ef1772f0f5ae5d606afaaa87218e45"),
        (57.7, "ba078efd101c2308fb978467084f0ec12485ed8bfbb7695e477587b3272a1d66"),
        (51.2, "71a814047d7729bad711ae3e7db30e6c32999a1189f88d328b73939f7aa80d62"),
    ],
    (V2, 0.35): [
        (60.3, "efcc34277c52f7dd4b0b26c2f52686793f4ea5fdddc899ac5aac9eb8d5861550"),
        (58.2, "5dec603e2714a780c3cfc0656dac51bf2f4b354c4f7acda879ad5b6017f3f55b"),
        (55.7, "e579b5b50f47e88dc0c4390d20a396658b97457182f83905154a8a687ba15fa7"),
        (50.8, "c21a8f89e2e1a49e9002b1e1b871f3c92695ccb0cd64e7e7a21b71f2820beddb"),
        (45.5, "282996bca7d799d0172ce5d34ac59dea497c4c75f069a8b466bb944c6f843353"),
    ],
}


def _tensorflow() -> Iterator[Entry]:
    for (network, alpha), files in TARBALLS.items():
        for side, (accuracy, digits) in zip(SIZES_V2, files, strict=False):
            file = f"{network}_{alpha}_{side}"
            yield Entry(f"tf-{file}", f"{TF_V1 if network == V1 else TF_V2}/{file}.tgz", "tarball", network, alpha, side,
                        checksum=f"sha256:{digits}", accuracy=accuracy)  # fmt: skip


# ---- TensorFlow Lite

CORAL = "https://github.com/google-coral/test_data/raw/104342d2d3480b3e66203073dac24f4e2dbb4c41"
TINY = "https://github.com/mlcommons/tiny/raw/1afd2c9/benchmark/training/visual_wake_words/trained_models"
EMBEDDER = (
    "https://github.com/tensorflow/examples/raw/608f7db/tensorflow_examples/lite/model_maker/core/data_util/testdata/"
    "mobilenet_v2_035_96_embedder_with_metadata.tflite"
)


def _lite() -> Iterator[Entry]:
    for network, alpha, side, file, size, digits in (
        (V1, 0.25, 128, "mobilenet_v1_0.25_128_quant", 525_598, "cb273c23ee76374b05b9583177e28aa19744858a7679c56a250e83d0333da785"),
        (V1, 0.5, 160, "mobilenet_v1_0.5_160_quant", 1_392_846, "3cc6d2ca460abd2e0f699a6d0d2550c6b61c6e3b0e27a3616e384ea74cb86f43"),
        (V1, 0.75, 192, "mobilenet_v1_0.75_192_quant", 2_652_542, "41daeb22fdcf947e0e5ec32373aa9df7c31f3ef45dbd0ef7b5940fbce3c20f6a"),
        (V2, 1.0, 224, "mobilenet_v2_1.0_224_quant", 3_610_798, "7aad0c74c5e3c06e5eb3c827e13304fdd68a83da6087d92ee169c24ff9fd4776"),
        (V2, 1.0, 224, "tf2_mobilenet_v2_1.0_224_ptq", 4_070_174, "5d3137241276e79c86d14a74fe43581398ae0e815191d3dba45495b810840e8c"),
    ):
        name = f"coral-{network}_{alpha}_{side}-{file.rsplit('_')[-1]}"
        yield Entry(name, f"{CORAL}/{file}.tflite", "tflite", network, alpha, side, size, f"sha256:{digits}", "Apache-2.0")
    digits = "0e504dcf1ca711a4cb6c1019672ba22a9c9f51ae45b439e7ee4390a387361fad"
    yield Entry("tf-examples-mobilenet_v2_0.35_96", EMBEDDER, "tflite", V2, 0.35, 96, 566_166, f"sha256:{digits}", "Apache-2.0")
    for end, file, form, size, checksum in (  # MLPerf Tiny's person detector
        ("", "vww_96.h5", "keras-h5", 3_124_024, "sha256:af9111d50e6e85b2f2123345e0316ef1c384865ebf6b06340ddac7e66017450f"),
        ("-float", "vww_96_float.tflite", "tflite", 866_284, "md5:c777d35ddb2ba1a6b9f2b72d9bc59728"),
        ("-int8", "vww_96_int8.tflite", "tflite", 333_288, "md5:f0b011416abee0343a5d130cb1f4c18f"),
    ):
        yield Entry(f"mlperf-tiny-mobilenet_v1_0.25_96{end}", f"{TINY}/{file}", form, V1, 0.25, 96, size, checksum, "Apache-2.0")


# ---- PyTorch, ONNX, TensorFlow.js

TORCHVISION = "https://download.pytorch.org/models"
D_LI14 = "https://raw.githubusercontent.com/d-li14/mobilenetv2.pytorch/master/pretrained"
TIMM = "https://github.com/rwightman/pytorch-image-models/releases/download/v0.1-weights"
HUB = "https://huggingface.co"


def _torch() -> Iterator[Entry]:
    for end, digits, accuracy in (("v1", "b0353104", 71.878), ("v2", "7ebf99e0", 72.154)):
        yield Entry(f"torchvision-mobilenet_v2_1.0_224-{end}", f"{TORCHVISION}/mobilenet_v2-{digits}.pth", "torch", V2, 1.0, 224,
                    checksum=f"sha256:{digits}", accuracy=accuracy)  # fmt: skip
    d_li14: tuple[tuple[float, int, str, float | None, str], ...] = (
        (1.0, 224, "_1.0-0c6065bc", 72.192, ""), (1.0, 224, "-c5e733a8", 72.834, "-better"), (0.75, 224, "_0.75-dace9791", 69.952, ""),
        (0.5, 224, "_0.5-eaa6f9ad", 64.592, ""), (0.35, 224, "_0.35-b2e15951", 60.092, ""), (0.25, 224, "_0.25-b61d2159", 52.352, ""),
        (0.1, 224, "_0.1-7d1d638a", 34.896, ""), (1.0, 192, "_192x192-e423d99e", None, ""), (1.0, 160, "_160x160-64dc7fa1", None, ""),
        (1.0, 128, "_128x128-fd66a69d", None, ""), (1.0, 96, "_96x96-ff0e83d8", 62.696, ""),
    )  # fmt: skip
    for alpha, side, file, known, end in d_li14:
        yield Entry(f"d-li14-{V2}_{alpha}_{side}{end}", f"{D_LI14}/mobilenetv2{file}.pth", "torch", V2, alpha, side,
                    checksum=f"sha256:{file[-8:]}", licence="Apache-2.0", accuracy=known)  # fmt: skip
    for alpha, file, accuracy in ((0.5, "050-3d30d450", 65.93), (1.0, "100_ra-b33bc2c4", 72.91), (1.4, "140_ra-21a4e913", 76.53)):
        yield Entry(f"timm-{V2}_{alpha}_224", f"{TIMM}/mobilenetv2_{file}.pth", "torch", V2, alpha, 224,
                    checksum=f"sha256:{file[-8:]}", licence="Apache-2.0", accuracy=accuracy)  # fmt: skip
    for network, model, checksum, accuracy in (
        (V1, "mobilenetv1_100.ra4_e3600_r224_in1k", None, 75.39),
        (V2, "mobilenetv2_100.ra_in1k", "sha256:55ea4fb3a96010b933710ebf44fc965b070d5cd054d3f35e44f2d1320b4a714e", 72.91),
    ):
        yield Entry(f"timm-{network}_1.0_224-safetensors", f"{HUB}/timm/{model}/resolve/main/model.safetensors", "safetensors",
                    network, 1.0, 224, checksum=checksum, licence="Apache-2.0", accuracy=accuracy)  # fmt: skip
    for network, alpha, side in ((V2, 0.35, 96), (V2, 1.0, 224), (V1, 0.75, 192)):
        file = f"{network}_{alpha}_{side}"
        yield Entry(f"google-{file}", f"{HUB}/google/{file}/resolve/main/pytorch_model.bin", "torch", network, alpha, side, licence="other")


def _others() -> Iterator[Entry]:
    url = f"{HUB}/onnx-community/mobilenet_v2_0.35_96/resolve/main/onnx/model.onnx"
    yield Entry("onnx-community-mobilenet_v2_0.35_96", url, "onnx", V2, 0.35, 96)
    for alpha, text in ((1.0, "1.0"), (0.75, "0.75"), (0.5, "0.50"), (0.25, "0.25")):
        url = f"https://storage.googleapis.com/tfjs-models/tfjs/mobilenet_v1_{text}_224/model.json"
        yield Entry(f"tfjs-{V1}_{alpha}_224", url, "tfjs", V1, alpha, 224)
    for alpha in (1.0, 0.75, 0.5, 0.35):
        stem = f"mobilenet_v2_weights_tf_dim_ordering_tf_kernels_{alpha:.2f}_224_no_top"
        yield Entry(f"teachable-machine-{V2}_{alpha}_224", f"https://storage.googleapis.com/teachable-machine-models/{stem}/model.json",
                    "tfjs", V2, alpha, 224)  # fmt: skip


ENTRIES: dict[str, Entry] = {entry.name: entry for family in (_keras, _tensorflow, _lite, _torch, _others) for entry in family()}
