"""Sphinx extension: links that nobody has to write.

An entry of the glossary leads to the sections that use the word, and the search leads
to the cell that shows a definition of the library.
"""

import re
import sys
from pathlib import Path

from docutils import nodes
from sphinx.addnodes import index, pending_xref

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from tools.sync import read_marker  # noqa: E402

GLOSSARY = "book/glossary"
SHOWN = 3  # sections at most, where a word is only mentioned and never linked


def mark_definitions(app, doctree):
    """Enter each definition that a cell shows in the index which the search reads."""
    for block in list(doctree.findall(nodes.literal_block)):
        cell = block.parent.parent
        marker = read_marker(block.astext())
        if not marker or "cell" not in cell.get("classes", []):
            continue
        anchor = "-".join(["code", *marker[1]])
        cell["ids"].append(anchor)  # one only: the search shows the text of its element
        entries = [("single", name, anchor, "", None) for name in marker[1]]
        cell.parent.insert(cell.parent.index(cell), index(entries=entries))


def sections(app):
    """(page, section, its id or "" for the page itself) of the book, in its order."""
    parts = app.config.external_site_map.root.subtrees
    for page in [str(item) for part in parts for item in part.items]:
        if page in app.env.all_docs and page != GLOSSARY:
            for n, section in enumerate(
                app.env.get_doctree(page).findall(nodes.section)
            ):
                yield page, section, "" if n == 0 else section["ids"][0]


def own(section, kind):
    """The nodes of a kind in a section and in none of its subsections."""
    for node in section.findall(kind):
        parent = node.parent
        while not isinstance(parent, nodes.section):
            parent = parent.parent
        if parent is section:
            yield node


def find_uses(app):
    """Return {word: places that link it} and [(place, text)]; page, id, title each."""
    linked, texts = {}, []
    for page, section, anchor in sections(app):
        place = (page, anchor, section.next_node(nodes.title).astext())
        for xref in own(section, pending_xref):
            if xref.get("reftype") == "term":
                places = linked.setdefault(xref["reftarget"].lower(), [])
                if place not in places:
                    places.append(place)
        words = " ".join(p.astext() for p in own(section, nodes.paragraph))
        texts.append((place, words.lower()))
    return linked, texts


def add_uses(app, doctree, docname):
    """Close each entry of the glossary with links to where its words are used."""
    if docname != GLOSSARY:
        return
    linked, texts = find_uses(app)
    for entry in doctree.findall(nodes.definition_list_item):
        names = [t.astext().lower() for t in entry.findall(nodes.term)]
        places = [place for name in names for place in linked.get(name, [])]
        if not places:
            word = re.compile("|".join(rf"\b{re.escape(n)}s?\b" for n in names))
            places = [place for place, text in texts if word.search(text)][:SHOWN]
        if places:
            entry.next_node(nodes.definition).append(paragraph(app, places))


def paragraph(app, places):
    """Links to pages, each followed by those of its sections that use the word."""
    pages = {}
    for page, anchor, title in dict.fromkeys(places):
        pages.setdefault(page, []).extend([(anchor, title)] if anchor else [])

    def link(page, text, anchor=""):
        address = app.builder.get_relative_uri(GLOSSARY, page)
        address += f"#{anchor}" if anchor else ""
        return nodes.reference("", text, refuri=address, internal=True)

    result = nodes.paragraph("", "Used in ", classes=["uses"])
    for n, (page, found) in enumerate(pages.items()):
        result += [nodes.Text("; ")] * bool(n)
        result += link(page, app.env.titles[page].astext())
        for k, (anchor, title) in enumerate(found):
            result += [nodes.Text(", " if k else ": "), link(page, title, anchor)]
    return result


def setup(app):
    app.connect("doctree-read", mark_definitions)
    app.connect("doctree-resolved", add_uses)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
