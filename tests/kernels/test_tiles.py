"""Tiles fit the machine, and warming up reaches every one that serving uses."""

import pytest

from squeeze10_kernels.tiles import H200, MMA_BUCKETS, Gpu, Tile, WgmmaTile, select_tile, warm_up_tokens

GPUS = [H200, Gpu((9, 0), 78), Gpu((8, 0), 108), Gpu((8, 6), 82), Gpu((12, 0), 170)]
LAYERS = [
    (1, 8),
    (64, 4096),
    (960, 576),
    (4096, 4096),
    (12288, 4096),
    (22016, 4096),
    (4096, 11008),
    (6144, 4096),
    (4096, 14336),
    (8192, 8192),
    (10240, 8192),
    (1280, 8192),
    (57344, 8192),
    (8192, 28672),
]


@pytest.mark.parametrize("gpu", GPUS)
@pytest.mark.parametrize(("N", "K"), LAYERS)
def test_warming_up_compiles_every_tile_that_serving_uses(N: int, K: int, gpu: Gpu) -> None:
    warm = {select_tile(M, N, K, gpu) for M in warm_up_tokens(N, K, gpu)}

    used = {select_tile(M, N, K, gpu) for M in (*range(1, 2100), *range(2100, 20000, 61))}

    assert used <= warm


@pytest.mark.parametrize("gpu", GPUS)
@pytest.mark.parametrize(("N", "K"), LAYERS)
def test_tiles_fit_the_kernels(N: int, K: int, gpu: Gpu) -> None:
    for M in (1, 8, 9, 16, 17, 33, 64, 65, 128, 129, 512, 513, 5000):
        tile = select_tile(M, N, K, gpu)
        if isinstance(tile, Tile):
            assert tile.rows % 16 == tile.tokens % 8 == 0
            assert tile.groups * tile.slices in (1, 2, 4, 8), "warps of a program"
        elif isinstance(tile, WgmmaTile):
            assert tile.rows in (64, 128, 256), "what the store's layout knows"
            assert tile.rows % (16 * tile.warps) == tile.warps % 4 == tile.tokens % 16 == 0
            assert tile.chunks in (1, 2, 4)
            assert tile.registers % 8 == 0
            assert tile.on_multiprocessor >= 1, "registers and shared memory"
            units = K // 256 + 1
            shares = [units * (part + 1) // tile.split - units * part // tile.split for part in range(tile.split)]
            assert min(shares) > 0, "every program has units"
        else:
            assert not gpu.hopper
            assert MMA_BUCKETS[-1] < M


def test_work_is_split_until_every_multiprocessor_has_some() -> None:
    tile = select_tile(16, 4096, 11008, H200)

    assert isinstance(tile, WgmmaTile)
    assert tile.split * tile.tiles(16, 4096) in range(300, 132 * tile.on_multiprocessor + 1)
    wide = select_tile(4096, 22016, 4096, H200)
    assert isinstance(wide, WgmmaTile)
    assert wide.split == 1


@pytest.mark.parametrize(
    ("capability", "hopper", "pdl"),
    [
        ((8, 0), False, False),
        ((8, 9), False, False),
        ((9, 0), True, True),
        ((10, 0), False, True),
        ((12, 0), False, True),
    ],
)
def test_only_hopper_gets_its_own_tiles(capability: tuple[int, int], hopper: bool, pdl: bool) -> None:
    gpu = Gpu(capability, multiprocessors=100)

    tiles = [select_tile(M, 4096, 4096, gpu) for M in (8, 16, 128, 129)]

    assert gpu.pdl == pdl
    kinds = [type(tile) for tile in tiles]
    assert kinds == ([Tile, *[WgmmaTile] * 3] if hopper else [Tile, Tile, Tile, type(None)])


def test_off_hopper_the_number_of_multiprocessors_decides_nothing() -> None:
    small, large = Gpu((8, 6), 28), Gpu((12, 0), 170)

    for M in (1, 16, 128, 300):
        assert select_tile(M, 4096, 4096, small) == select_tile(M, 4096, 4096, large)
    assert warm_up_tokens(4096, 4096, small) == warm_up_tokens(4096, 4096, large)
