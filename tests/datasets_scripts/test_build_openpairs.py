"""The builder's steps, on toy packages (the drawings need resvg-py)."""

import io
import json

import pytest
from PIL import Image

pytest.importorskip("resvg_py")

from rmcl_hub.datasets_scripts import build_openpairs as build

NAMESPACE = "http://www.w3.org/2000/svg"
SVG = (
    f'<svg xmlns="{NAMESPACE}" width="{{width}}pt" height="{{height}}pt" viewBox="0 0 40 20">{{shape}}</svg>'
)
RED = '<rect width="40" height="20" fill="#ff0000"/>'
METADATA = """<svg xmlns="http://www.w3.org/2000/svg" width="10" height="10" xmlns:cc="http://web.resource.org/cc/"
 xmlns:dc="http://purl.org/dc/elements/1.1/" xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
<metadata><rdf:RDF><cc:Work><dc:title>{title}</dc:title><dc:description/>
<dc:subject><rdf:Bag><rdf:li>{keyword}</rdf:li></rdf:Bag></dc:subject>
<dc:creator><cc:Agent><dc:title>{author}</dc:title></cc:Agent></dc:creator>
<cc:license rdf:resource="{licence}"/></cc:Work></rdf:RDF></metadata>
<rect width="10" height="10" fill="{colour}"/><rect width="3" height="3"/></svg>"""
PUBLIC_DOMAIN = "http://web.resource.org/cc/PublicDomain"


def emoji(hexcode, annotation, base="", skintone="", tags="", group="people-body"):
    return {
        "hexcode": hexcode,
        "annotation": annotation,
        "skintone_base_hexcode": base,
        "skintone": skintone,
        "tags": tags,
        "openmoji_tags": "",
        "group": group,
        "subgroups": "person-role",
        "openmoji_author": "A",
    }


def test_drawings_keep_their_shape_on_a_white_square(tmp_path):
    path = tmp_path / "wide.svg"
    path.write_text(SVG.format(width=40, height=20, shape=RED))
    picture = build.draw_svg(path, 192)
    assert picture.size == (96, 96)
    assert picture.getpixel((48, 48)) == (255, 0, 0)
    assert picture.getpixel((48, 10)) == picture.getpixel((48, 85)) == (255, 255, 255)


def test_transparency_becomes_white():
    assert build.on_white(Image.new("RGBA", (4, 4), (0, 0, 0, 0))).getpixel((50, 50)) == (255, 255, 255)


def test_twins_and_blank_pictures_are_dropped():
    red, blue, blank = (Image.new("RGB", (96, 96), colour) for colour in ("red", "blue", "white"))
    for picture in (red, blue):
        picture.putpixel((0, 0), (1, 2, 3))
    rows = [{"image_id": name} for name in "abcd"]
    kept = build.without_pixel_twins(rows, [red, blue, red.copy(), blank])
    assert [row for row, _ in kept] == [
        {"image_id": "a", "has_twin": True},
        {"image_id": "b", "has_twin": False},
    ]


def test_lossless_pictures_keep_their_pixels():
    picture = Image.effect_noise((96, 96), 50).convert("RGB")
    stored = build.encode_webp(picture, lossless=True)
    assert Image.open(io.BytesIO(stored["bytes"])).convert("RGB").tobytes() == picture.tobytes()


def test_openmoji_variants_share_keywords_names_and_concept(tmp_path):
    entries = [
        emoji("1F9D1-200D-1F680", "astronaut", tags="rocket, space"),
        emoji("1F469-200D-1F680", "woman astronaut", tags="rocket, woman"),
        emoji("1F469-1F3FF-200D-1F680", "woman astronaut: dark skin tone", "1F469-200D-1F680", 5),
        emoji("E000", "red hair", group="component"),
    ]
    path = tmp_path / "openmoji.json"
    path.write_text(json.dumps(entries))
    names = {"1F469-200D-1F680": {"names": ["female-astronaut"], "path": None}}
    plain, woman, dark = build.read_openmoji(path, names)
    assert plain["concept"] == woman["concept"] == dark["concept"] == "1F469-200D-1F680"
    assert dark["captions"] == [
        "woman astronaut: dark skin tone",
        "rocket woman: dark skin tone",
        "female astronaut: dark skin tone",
    ]
    assert (dark["annotation"], dark["skin_tone"], dark["gender"]) == ("woman astronaut", "dark", "woman")
    assert (dark["base"], plain["skin_tone"], plain["gender"]) == ("1F469-200D-1F680", "", "")


def write_drawing(
    folder, name, title, licence=PUBLIC_DOMAIN, keyword="thing", author="Somebody", colour="red"
):
    path = folder / f"{name}.svg"
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"title": title, "licence": licence, "keyword": keyword, "author": author, "colour": colour}
    path.write_text(METADATA.format(**content))


def test_openclipart_keeps_public_domain_drawings_of_other_things(tmp_path):
    write_drawing(tmp_path, "food/pear", "Pear", author="somebody@mail.example")
    write_drawing(tmp_path, "food/apple", "Apple", licence="http://creativecommons.org/licenses/GPL/2.0/")
    write_drawing(tmp_path, "food/fig", "Fig", licence="")
    write_drawing(tmp_path, "food/banana", "Two ripe Banana fruits")
    write_drawing(tmp_path, "food/yellow", "Yellow fruit", keyword="banana")
    write_drawing(tmp_path, "logos/brand", "Brand")
    write_drawing(tmp_path, "food/mela", "Mela", author="Architetto Francesco Rollandin")
    write_drawing(tmp_path, "geography/flag_of_peru", "Peru")
    write_drawing(tmp_path, "people/lady", "Sexy lady")
    for i in range(7):
        write_drawing(tmp_path, f"shapes/series_{i}", f"Series {i}")
    selected = build.select_openclipart(build.read_openclipart(tmp_path), {frozenset({"banana"})})
    assert [drawing["name"] for drawing in selected] == ["food/pear"]
    (row,) = build.build_openclipart(selected)
    assert row["captions"] == ["Pear", "thing"]
    assert (row["image_id"], row["group"], row["author"]) == ("openclipart/food/pear", "food", "somebody")


def test_hexcodes_of_both_emoji_packages_meet():
    assert build.bare_hexcode("1f575-fe0f-200d-2642-fe0f") == "1F575-200D-2642"
