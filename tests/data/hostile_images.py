"""Valid and broken image files of many kinds."""

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms

SIZE = (60, 40)
KINDS = {"PNG": "png", "JPEG": "jpg", "WEBP": "webp", "GIF": "gif", "TIFF": "tif", "BMP": "bmp"}


def noise(size: tuple[int, int] = SIZE, seed: int = 0) -> Image.Image:
    width, height = size
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8))


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width: int, height: int, *extra: bytes) -> bytes:
    """A PNG with any size in its header, but few pixels."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(bytes(1000)))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(extra) + pixels + chunk(b"IEND", b"")


def with_size(data: bytes, before: bytes, struct_format: str, width: int, height: int) -> bytes:
    """Replaces the size in a file's header, which follows the bytes `before`."""
    place = data.index(before) + len(before)
    size = struct.pack(struct_format, width, height)
    return data[:place] + size + data[place + len(size) :]


def bombs() -> dict[str, bytes]:
    """Small files whose headers claim 3.6 billion pixels, or the maximum of their format."""
    side = 60_000
    jpeg = saved(noise(), "JPEG")
    start = jpeg[: jpeg.index(b"\xff\xc0") + 5]
    tiff = saved(noise(), "TIFF")
    for tag in (256, 257):
        place = tiff.index(struct.pack("<HH", tag, 4)) + 8
        tiff = tiff[:place] + struct.pack("<I", side) + tiff[place + 4 :]
    return {
        "bomb.png": png(side, side),
        "bomb.jpg": start + struct.pack(">HH", side, side) + jpeg[len(start) + 4 :],
        "bomb.gif": with_size(saved(noise(), "GIF"), b"GIF87a", "<HH", side, side),
        "bomb.bmp": with_size(saved(noise(), "BMP"), struct.pack("<I", 40), "<ii", side, side),
        "bomb.ppm": f"P6 {side} {side} 255\n".encode() + bytes(1000),
        "bomb.tif": tiff,
        "bomb_exif.png": png(side, side, chunk(b"eXIf", b"MM\0*" + bytes(20))),
        # Compressed text that expands a thousandfold.
        "text_bomb.png": png(4, 4, *[chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(10_000_000)))] * 30),
    }


def images() -> dict[str, bytes]:
    """Files that detectron2 can read, by name."""
    rgb = noise()
    transparent = rgb.quantize(8)
    transparent.info["transparency"] = 3
    frames = [noise(seed=number) for number in range(3)]
    animated: dict[str, object] = {"save_all": True, "append_images": frames[1:]}
    odd_profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    found = {
        "plain.png": saved(rgb, "PNG"),
        "one_bit.png": saved(rgb.convert("1"), "PNG"),
        "grey.png": saved(rgb.convert("L"), "PNG"),
        "grey.jpg": saved(rgb.convert("L"), "JPEG"),
        "grey_alpha.png": saved(rgb.convert("LA"), "PNG"),
        "alpha.png": saved(rgb.convert("RGBA"), "PNG"),
        "alpha.webp": saved(rgb.convert("RGBA"), "WEBP"),
        "palette.png": saved(rgb.convert("P"), "PNG"),
        "palette_transparent.png": saved(transparent, "PNG"),
        "palette_transparent.gif": saved(transparent, "GIF"),
        "colour_key.png": saved(rgb, "PNG", transparency=(1, 2, 3)),
        "cmyk.jpg": saved(rgb.convert("CMYK"), "JPEG"),
        "cmyk.tif": saved(rgb.convert("CMYK"), "TIFF"),
        "lab.tif": saved(Image.frombytes("LAB", SIZE, rgb.tobytes()), "TIFF"),
        "animated.gif": saved(frames[0], "GIF", **animated),
        "animated.webp": saved(frames[0], "WEBP", **animated),
        "animated.png": saved(frames[0], "PNG", **animated),
        "sixteen_bits_dark.png": saved(Image.fromarray(np.asarray(rgb)[:, :, 0].astype(np.uint16)), "PNG"),
        "lying_name.jpg": saved(rgb, "PNG"),
        "one_pixel.png": saved(noise((1, 1)), "PNG"),
        "one_pixel.jpg": saved(noise((1, 1)), "JPEG"),
        "odd_profile.png": saved(rgb, "PNG", icc_profile=odd_profile),
        "broken_profile.jpg": saved(rgb, "JPEG", icc_profile=b"not a profile" * 20),
        "broken_exif.jpg": saved(rgb, "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + b"\x01\x12" * 30),
        "cut_exif.jpg": saved(rgb, "JPEG", exif=b"Exif\0\0II"),
        "text_exif.png": png(4, 4, chunk(b"eXIf", b"not EXIF")),
        "progressive.jpg": saved(rgb, "JPEG", progressive=True),
        "with space.png": saved(rgb, "PNG"),
        "ünïcödé 图.png": saved(rgb, "PNG"),
        "line\nfeed.png": saved(rgb, "PNG"),
        "\x1b[31mred.png": saved(rgb, "PNG"),
        "-flag.png": saved(rgb, "PNG"),
        "$(echo shell);&'\"`.png": saved(rgb, "PNG"),
        "%s{0}.png": saved(rgb, "PNG"),
        "a" * 240 + ".png": saved(rgb, "PNG"),
    }
    for orientation in range(10):
        exif = Image.Exif()
        exif[0x0112] = orientation
        found[f"turned_{orientation}.jpg"] = saved(rgb, "JPEG", exif=exif)
    return found


def broken() -> dict[str, bytes]:
    """Files that detectron2 can't read, or would clip, by name."""
    rgb = noise()
    deep = np.random.default_rng(0).integers(0, 65535, SIZE[::-1])
    found = {
        "empty.png": b"",
        "one_byte.jpg": b"\xff",
        "text.jpg": b"no image",
        "page.jpg": b"<html><body>404</body></html>",
        "drawing.png": b'<svg xmlns="http://www.w3.org/2000/svg" width="60" height="40"/>',
        "random.png": np.random.default_rng(0).bytes(5000),
        "signature.png": b"\x89PNG\r\n\x1a\n",
        "no_pixels.png": png(60, 40).replace(b"IDAT", b"iDAT"),
        "no_size.png": png(0, 0),
        "sixteen_bits.png": saved(Image.fromarray(deep.astype(np.uint16)), "PNG"),
        "thirty_two_bits.tif": saved(Image.fromarray(deep.astype(np.int32)), "TIFF"),
        "floats.tif": saved(Image.fromarray(deep.astype(np.float32)), "TIFF"),
        "program.jpg": saved(rgb, "EPS"),
        **bombs(),
    }
    for kind, suffix in KINDS.items():
        whole = saved(rgb, kind)
        for part in (0.1, 0.5, 0.9):
            found[f"cut_{part}.{suffix}"] = whole[: int(part * len(whole))]
    return found


def write_all(folder: Path, make: Callable[[], dict[str, bytes]]) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / name for name in make()]
    for path, content in zip(paths, make().values(), strict=True):
        path.write_bytes(content)
    return paths


def no_files(folder: Path) -> list[Path]:
    """Paths with an image's name that are not files."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "folder.jpg").mkdir()
    (folder / "loop.jpg").symlink_to("loop.jpg")
    (folder / "nowhere.jpg").symlink_to("gone.jpg")
    (folder / "device.jpg").symlink_to("/dev/zero")
    return [folder / f"{name}.jpg" for name in ("folder", "loop", "nowhere", "device", "missing")]
