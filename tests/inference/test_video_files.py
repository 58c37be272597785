"""Videos read and written: colours by their definition, turns, depths, and files that are no use."""

from __future__ import annotations

import io
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from PIL import Image
from support.videos import make_video, turn_by_metadata

av = pytest.importorskip("av")

from basicsr.inference.video_files import Frame, VideoFile
from basicsr.inference.video_writing import Encoding, Part, join, write_part
from basicsr.utils.errors import DataError

KR_KB = {1: (0.2126, 0.0722), 5: (0.299, 0.114), 9: (0.2627, 0.0593)}  # ITU-R BT.709, BT.601, BT.2020
COLOURS = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0), (200, 30, 60), (12, 130, 240)]


def to_yuv(rgb: tuple[int, ...], matrix: int, levels: int, bits: int = 8) -> np.ndarray:
    """By the definitions of ITU-R BT.601, 709 and 2020."""
    kr, kb = KR_KB[matrix]
    r, g, b = (channel / 255 for channel in rgb)
    y = kr * r + (1 - kr - kb) * g + kb * b
    cb, cr = (b - y) / (2 * (1 - kb)), (r - y) / (2 * (1 - kr))
    unit = 2 ** (bits - 8)
    if levels == 1:
        return np.array([16 + 219 * y, 128 + 224 * cb, 128 + 224 * cr]) * unit
    top = 2**bits - 1
    return np.array([y * top, cb * top + 128 * unit, cr * top + 128 * unit])


def planes(yuv: np.ndarray, height: int = 16, width: int = 16, dtype: type = np.uint8) -> np.ndarray:
    return np.ones((3, height, width), dtype) * np.rint(yuv).astype(dtype)[:, None, None]


def noise(count: int, height: int = 16, width: int = 24) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return list(rng.integers(0, 256, (count, height, width, 3), dtype=np.uint8))


class TestColours:
    @pytest.mark.parametrize("levels", [1, 2], ids=["limited", "full"])
    @pytest.mark.parametrize("matrix", [1, 5, 9])
    def test_a_known_colour_is_read_by_the_files_matrix_and_range(self, tmp_path, matrix, levels):
        given = [planes(to_yuv(rgb, matrix, levels).clip(0, 255)) for rgb in COLOURS]
        path = make_video(tmp_path / "a.mp4", given, raw=True, layout="yuv444p", matrix=matrix, levels=levels)
        found = [frame.pixels for frame in VideoFile(str(path)).frames()]
        for rgb, pixels in zip(COLOURS, found, strict=True):
            assert np.abs(pixels.astype(int) - rgb).max() <= 2  # a level of YUV is up to 2.2 of blue

    @pytest.mark.parametrize("width", [1278, 1280])
    def test_where_a_file_says_nothing_its_size_tells_and_the_result_says_so(self, tmp_path, width):
        matrix = 1 if width >= 1280 else 5
        given = [planes(to_yuv((200, 30, 60), matrix, 1), 16, width)] * 2
        path = make_video(tmp_path / "a.mp4", given, raw=True, matrix=2, levels=0)
        video = VideoFile(str(path))
        assert np.abs(next(video.frames()).pixels.astype(int) - (200, 30, 60)).max() <= 2
        assert video.colours.matrix in ((1,) if width >= 1280 else (5, 6))
        assert any("no colour matrix" in note for note in video.notes)

    @pytest.mark.parametrize("levels", [1, 2], ids=["limited", "full"])
    @pytest.mark.parametrize("matrix", [1, 5])
    def test_what_is_written_has_the_colours_by_definition_and_says_how(self, tmp_path, matrix, levels):
        given = [planes(to_yuv((1, 2, 3), matrix, levels))] * 2
        path = make_video(tmp_path / "a.mp4", given, raw=True, matrix=matrix, levels=levels)
        result = written(tmp_path / "b.mp4", VideoFile(str(path)), [np.full((32, 32, 3), c, np.uint8) for c in COLOURS])
        with av.open(str(result)) as container:
            for rgb, frame in zip(COLOURS, container.decode(video=0), strict=True):
                assert frame.format.name == "yuv420p" if levels == 1 else "yuvj420p"
                assert (int(frame.colorspace), int(frame.color_range)) == (matrix, levels)
                found = frame.to_ndarray()
                expected = to_yuv(rgb, matrix, levels).clip(0, 255)
                assert np.abs(found[:32] - expected[0]).max() <= 1
                assert np.abs(found[32:40] - expected[1]).max() <= 1
                assert np.abs(found[40:] - expected[2]).max() <= 1

    @pytest.mark.parametrize("levels", [1, 2], ids=["limited", "full"])
    def test_ten_bits_are_read_and_written_as_such(self, tmp_path, levels):
        given = [planes((to_yuv(rgb, 1, levels, 10) * 64).clip(0, 65472), dtype=np.uint16) for rgb in COLOURS]
        path = make_video(
            tmp_path / "a.mkv", given, raw=True, layout="yuv422p10le", matrix=1, levels=levels, codec="ffv1"
        )
        video = VideoFile(str(path))
        assert (video.bits, video.depth, video.subsampling) == (16, 10, "422")
        pixels = [frame.pixels for frame in video.frames()]
        for rgb, found in zip(COLOURS, pixels, strict=True):
            assert np.abs(found / 257 - rgb).max() <= 0.5  # a level of 10 bits is up to 0.55 of blue, of 8 bits
        with av.open(str(written(tmp_path / "b.mp4", video, pixels))) as container:
            for rgb, frame in zip(COLOURS, container.decode(video=0), strict=True):
                assert frame.format.name == "yuv422p10le"
                found = frame.reformat(format="yuv444p16le").to_ndarray() / 64
                assert np.abs(found - to_yuv(rgb, 1, levels, 10).clip(0, 1023)).max() <= 2

    def test_gray_stays_one_channel(self, tmp_path):
        ramp = np.repeat(np.arange(0, 256, 4, dtype=np.uint8)[None, :, None], 16, axis=0).repeat(3, axis=2)
        path = make_video(tmp_path / "a.mkv", [ramp] * 2, layout="gray", codec="ffv1")
        video = VideoFile(str(path))
        frame = next(video.frames())
        assert frame.pixels.shape == (16, 64, 1)
        assert np.abs(frame.pixels[..., 0].astype(int) - ramp[..., 0]).max() <= 1
        back = VideoFile(str(written(tmp_path / "b.mp4", video, [frame.pixels])))
        assert np.abs(next(back.frames()).pixels.astype(int) - ramp).max() <= 2

    def test_rgb_is_read_exactly_and_transparency_left_out(self, tmp_path):
        given = noise(2)
        video = VideoFile(str(make_video(tmp_path / "a.mkv", given, layout="bgra", codec="ffv1")))
        assert np.array_equal(next(video.frames()).pixels, given[0])
        assert video.notes == ["transparency left out"]


def written(path, video, arrays):
    """A file of the arrays, one part of as many frames as there are, as near as the codec goes."""
    height, width = arrays[0].shape[:2]
    encoding = Encoding("h264", 0, "medium", width, height, video)
    part = path.with_suffix(".nut")
    with open(part, "wb") as file:
        entry = write_part(file, [Frame(pixels, 512 * i, 512) for i, pixels in enumerate(arrays)], encoding)
    with open(path, "wb") as file:
        join(file, "mp4", {str(part): entry}, encoding)
    return path


def test_frames_that_avi_dropped_are_no_damage_and_change_the_rate(tmp_path):
    """AVI counts 600 a second here, of which 25 are there."""
    video = VideoFile(str(make_video(tmp_path / "a.avi", noise(20), codec="mjpeg", layout="yuvj420p", levels=2)))
    assert (video.total, video.rate) == (20, 25)
    assert [frame.pts for frame in video.frames()] == [24 * number for number in range(20)]


class TestTurns:
    @pytest.mark.parametrize(
        "matrix, expected",
        [
            ((1, 0, 0, 1), lambda image: image),
            ((0, 1, -1, 0), lambda image: np.rot90(image, -1)),  # a phone held upright
            ((-1, 0, 0, -1), lambda image: np.rot90(image, 2)),
            ((0, -1, 1, 0), lambda image: np.rot90(image, 1)),
            ((-1, 0, 0, 1), lambda image: image[:, ::-1]),
            ((1, 0, 0, -1), lambda image: image[::-1]),
            ((0, 1, 1, 0), lambda image: image.swapaxes(0, 1)),
        ],
    )
    def test_frames_are_turned_as_players_turn_them(self, tmp_path, matrix, expected):
        path = make_video(tmp_path / "a.mp4", noise(2), aspect=Fraction(4, 3))
        plain = next(VideoFile(str(path)).frames()).pixels
        turn_by_metadata(path, matrix)
        video = VideoFile(str(path))
        found = next(video.frames()).pixels
        assert np.array_equal(found, expected(plain))
        assert (video.height, video.width) == found.shape[:2]
        assert video.pixel_aspect == (Fraction(3, 4) if matrix[0] == 0 else Fraction(4, 3))


class TestParts:
    @pytest.mark.parametrize("codec", ["h264", "hevc", "ffv1"])
    def test_parts_are_joined_with_every_frame_at_its_time(self, tmp_path, codec):
        """Uneven times, with a pause, as phones and screen recorders make; parts of 7, B-frames over their ends."""
        times = [400 * i + 130 * (i % 3) + 9000 * (i >= 17) for i in range(30)]
        given = noise(30, 64, 64)
        path = make_video(tmp_path / "a.mp4", given, pts=times)
        video = VideoFile(str(path))
        assert video.is_variable
        encoding = Encoding(codec, None if codec == "ffv1" else 12, "medium", 64, 64, video)
        parts, frames = {}, list(video.frames())
        assert [frame.pts for frame in frames] == times
        for start in range(0, 30, 7):
            name = str(tmp_path / f"{start}.nut")
            with open(name, "wb") as file:
                parts[name] = write_part(file, frames[start : start + 7], encoding)
        with open(tmp_path / "b.mp4", "wb") as file:
            join(file, "mp4", parts, encoding)
        with av.open(str(tmp_path / "b.mp4")) as container:
            packets = [packet for packet in container.demux(video=0) if packet.size]
            assert all(one.dts < other.dts for one, other in pairwise(packets))
            assert all(packet.dts <= packet.pts for packet in packets)
            container.seek(0)
            found = [
                (frame.pts * frame.time_base, frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)
            ]
        assert [time for time, _ in found] == [Fraction(time, 12800) for time in times]
        for place, (_, pixels) in enumerate(found):  # frames of noise, as far apart as can be: each is its own nearest
            distances = [np.abs(frame.pixels.astype(float) - pixels).mean() for frame in frames]
            own = distances.pop(place)
            assert own < min(distances) / 2

    @pytest.mark.parametrize("size, layout", [((21, 37), "yuv420p"), ((21, 38), "yuv422p"), ((21, 37), "yuv444p")])
    def test_odd_sizes_have_an_edge_repeated_where_chroma_is_halved(self, tmp_path, size, layout):
        path = make_video(tmp_path / "a.mkv", noise(1), layout=layout, codec="ffv1")
        video = VideoFile(str(path))
        pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
        found = VideoFile(str(written(tmp_path / "b.mp4", video, [pixels])))
        expected = {"yuv420p": (22, 38), "yuv422p": (21, 38), "yuv444p": (21, 37)}[layout]
        assert (found.height, found.width) == expected

    def test_the_part_after_which_a_video_ends_says_how_long_its_last_frame_is(self, tmp_path):
        video = VideoFile(str(make_video(tmp_path / "a.mp4", noise(2))))
        entry = write_part(io.BytesIO(), [Frame(f, 100 * i, 77) for i, f in enumerate(noise(3))], encoding_of(video))
        assert (entry.frames, entry.first, entry.duration) == (3, 0, 77)
        assert isinstance(entry, Part)


def encoding_of(video: VideoFile) -> Encoding:
    return Encoding("h264", 20, "fast", 24, 16, video)


def sound_only(path):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate, frame.pts = 16000, 0
        container.mux(stream.encode(frame))
        container.mux(stream.encode())


def without_frames(path, kind="mp4"):
    with av.open(str(path), "w", format=kind) as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width = stream.height = 16
        stream.pix_fmt = "yuv420p"
        container.start_encoding()


def cut(path, kind, share=0.6, flags="faststart"):
    options = {"movflags": flags} if kind == "mp4" else {}
    whole = path.with_suffix(f".{kind}")
    make_video(whole, noise(100), container_options=options)
    content = whole.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])


def encrypted(path):
    key = {"encryption_scheme": "cenc-aes-ctr", "encryption_key": "76" * 16, "encryption_kid": "a7" * 16}
    make_video(path, noise(4), container_options=key)


def playlist(path):
    make_video(path.with_name("other.mkv"), noise(2))
    path.write_text("ffconcat version 1.0\nfile other.mkv\n")


@pytest.mark.parametrize(
    "make, expected",
    [
        (sound_only, "it holds no video, only sound"),
        (without_frames, "it holds no video, neither pictures nor sound"),
        (lambda path: without_frames(path, "avi"), "a video stream without frames"),
        (lambda path: without_frames(path, "matroska"), "it ends before its first frame"),
        (lambda path: cut(path, "mp4"), "it is cut short"),
        (lambda path: cut(path, "mkv", 0.4), "it is cut short"),
        (lambda path: cut(path, "mkv", 0.95), "it is cut short"),
        (lambda path: cut(path, "avi", 0.95), "it is cut short"),
        (lambda path: cut(path, "mp4", 0.97, "frag_keyframe+empty_moov"), "it is cut short"),
        (lambda path: cut(path, "mov", 0.9), "it is damaged or no video"),  # without its index, which is at the end
        (encrypted, "it is encrypted"),
        (playlist, "it is no video, whatever its name"),
        (lambda path: path.write_bytes(b""), "it is damaged or no video"),
        (lambda path: path.write_text("words"), "it is damaged or no video"),
        (lambda path: Image.new("RGB", (16, 16)).save(path, "PNG"), "it is no video, whatever its name"),
        (lambda path: path.mkdir(), "it is no file but a folder"),
        (lambda path: None, "No such file"),
        (lambda path: make_video(path, noise(4), options={"flags": "+ildct", "x264-params": "tff=1"}), "interlaced"),
    ],
    ids=lambda given: given if isinstance(given, str) else "",
)
def test_files_that_are_no_use_are_named_in_one_line(tmp_path, make, expected, capfd):
    path = tmp_path / "given.mp4"
    make(path)
    with pytest.raises(DataError) as error:
        VideoFile(str(path))
    message = str(error.value)
    assert expected in message
    assert "given.mp4" in message
    assert "\n" not in message
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("name", "after", "unknown"),
    [("a.mkv", b"\x18\x53\x80\x67", b"\x01" + b"\xff" * 7), ("a.avi", b"RIFF", bytes(4))],
)
def test_files_that_do_not_say_how_long_they_are_are_read(tmp_path, name, after, unknown):
    """As recorders write them: a Matroska segment of unknown size, and AVI's size left at 0."""
    path = make_video(tmp_path / name, noise(4))
    content = bytearray(path.read_bytes())
    place = content.index(after) + len(after)
    content[place : place + len(unknown)] = unknown
    path.write_bytes(content)
    assert len(list(VideoFile(str(path)).frames())) == 4


def test_frames_of_another_size_are_brought_to_that_of_the_first(tmp_path):
    """As broadcasters switch: two H.264 streams one after the other, in a transport stream."""
    contents = []
    for number, side in enumerate((32, 48)):
        path = make_video(
            tmp_path / f"{number}.ts", noise(3, side, side), pts=[512 * (i + 3 * number) for i in range(3)]
        )
        contents.append(path.read_bytes())
    (tmp_path / "a.ts").write_bytes(b"".join(contents))
    video = VideoFile(str(tmp_path / "a.ts"))
    shapes = {frame.pixels.shape for frame in video.frames()}
    assert shapes == {(32, 32, 3)}
    assert any("of another size" in note for note in video.notes)
