"""MNIST's four files, small: images and labels written as idx."""

import struct

import numpy as np

NAMES = {
    ("train", "x"): "train-images-idx3-ubyte",
    ("train", "y"): "train-labels-idx1-ubyte",
    ("test", "x"): "t10k-images-idx3-ubyte",
    ("test", "y"): "t10k-labels-idx1-ubyte",
}


def idx(array):
    array = np.asarray(array, np.uint8)
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


def small(train=60, test=20):
    """Image i has pixel 0 = i modulo 256, which identifies up to 256 images; labels go round the ten digits."""
    x = np.random.default_rng(0).integers(0, 256, (train + test, 28, 28))
    x[:, 0, 0] = np.arange(train + test) % 256
    y = np.arange(train + test) % 10
    return {("train", "x"): x[:train], ("train", "y"): y[:train], ("test", "x"): x[train:], ("test", "y"): y[train:]}


def write(folder, arrays):
    folder.mkdir(parents=True, exist_ok=True)
    for key, array in arrays.items():
        (folder / NAMES[key]).write_bytes(idx(array))
    return folder
