import pytest

from fedmlic.formats.voc_xml import Thing, read_annotation

BOX = "<bndbox><xmin>2</xmin><ymin>3</ymin><xmax>4</xmax><ymax>6</ymax></bndbox>"


def read(*objects, size="<size><width>64</width><height>48</height><depth>3</depth></size>"):
    return read_annotation(
        f"<annotation>{size}{''.join(f'<object>{o}</object>' for o in objects)}</annotation>".encode()
    )


def test_a_hand_example():
    """Corners count from 1 and include their pixel."""
    found = read(f"<name>dog</name><difficult>0</difficult>{BOX}", f"<name>cat</name><difficult>1</difficult>{BOX}")

    assert found.things == (Thing("cat", (1, 2, 3, 4), True), Thing("dog", (1, 2, 3, 4), False))
    assert found.size == (64, 48)
    assert found.problems == []


def test_a_part_is_not_the_object():
    part = "<part><name>head</name><bndbox><xmin>9</xmin><ymin>9</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></part>"

    found = read(f"{part}<name>person</name>{BOX}{part}")

    assert found.things == (Thing("person", (1, 2, 3, 4), False),)


def test_fractions_and_missing_and_padded_fields():
    box = "<bndbox><ymax> 47 </ymax><xmin>8.70000076</xmin><ymin>2</ymin><xmax>30</xmax></bndbox>"

    found = read(
        f"<name> person\n</name>{box}<difficult> 0 </difficult>", f"<name>cow</name><difficult/>{BOX}", size=""
    )

    assert [thing.name for thing in found.things] == ["cow", "person"]
    assert found.things[1].box == pytest.approx((7.70000076, 1, 22.29999924, 46))
    assert found.size == (0, 0)
    assert found.problems == []


def test_equal_objects_are_kept_once():
    found = read(f"<name>cow</name>{BOX}", f"<name>cow</name>{BOX}", f"<name>cow</name><difficult>1</difficult>{BOX}")

    assert len(found.things) == 2
    assert found.duplicates == 1


def test_crlf_byte_order_mark_and_other_encodings():
    text = f"<annotation>\r\n<object>\r\n<name>cow</name>{BOX}</object>\r\n</annotation>"
    expected = read(f"<name>cow</name>{BOX}").things

    assert read_annotation(b"\xef\xbb\xbf" + text.encode()).things == expected
    assert read_annotation(('<?xml version="1.0" encoding="ISO-8859-1"?>' + text).encode("latin-1")).things == expected
    assert read_annotation(('<?xml version="1.0" encoding="utf-16"?>' + text).encode("utf-16")).things == expected


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (f"<difficult>0</difficult>{BOX}", "object 1: no name"),
        (f"<name> </name>{BOX}", "object 1: its name is blank"),
        (f"<name>cow</name><name>dog</name>{BOX}", "object 1: two names"),
        (f"<name>c\x85w</name>{BOX}", r"object 1: its name holds the control character '\x85'"),
        ("<name>cow</name>", "object 1: xmin of its box is None, no number of pixels"),
        (
            f"<name>cow</name>{BOX.replace('3', '1e300', 1)}",
            "object 1: ymin of its box is '1e300', no number of pixels",
        ),
        (f"<name>cow</name>{BOX.replace('3', 'x', 1)}", "object 1: ymin of its box is 'x', no number of pixels"),
        (f"<name>cow</name>{BOX.replace('3', 'nan', 1)}", "object 1: ymin of its box is 'nan', no number of pixels"),
        (
            f"<name>cow</name>{BOX.replace('2', '9', 1)}",
            "object 1: its box ends before it begins, from (9, 3) to (4, 6)",
        ),
        (f"<name>cow</name><difficult>yes</difficult>{BOX}", "object 1: difficult is 'yes', not 0 or 1"),
    ],
)
def test_a_problem_is_named(text, problem):
    assert read(text).problems == [problem]


@pytest.mark.parametrize(("width", "height"), [("0", "48"), ("64", "-1"), ("nan", "48"), ("64", ""), ("1e400", "9")])
def test_a_size_is_stated_right_or_not_at_all(width, height):
    found = read(size=f"<size><width>{width}</width><height>{height}</height></size>")

    assert found.size == (0, 0)
    assert found.problems == [f"its size is {width!r} x {height!r}, not two numbers of pixels above 0"]
    assert read(size="<size><width>64</width></size>").problems == [
        "its size is '64' x None, not two numbers of pixels above 0"
    ]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"<annotation><object></annotation>", "no XML: mismatched tag"),
        (b"", "no XML: no element found"),
        (b'<?xml version="1.0" encoding="none"?><annotation/>', "no XML: unknown encoding"),
        (b"<html></html>", "<html> instead of <annotation>"),
        (b'<!DOCTYPE a [<!ENTITY b "c">]><annotation/>', "it declares a document type"),
        ('<!DOCTYPE a [<!ENTITY b "c">]><annotation/>'.encode("utf-16"), "it declares a document type"),
    ],
)
def test_a_file_that_is_no_annotation(content, problem):
    problems = read_annotation(content).problems

    assert len(problems) == 1
    assert problems[0].startswith(problem)
