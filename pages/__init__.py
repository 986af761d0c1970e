"""The documentation site: pages that are made from the source when the site is built (`make site`).

```
hooks.py        what mkdocs calls: adds the pages below, the README as the first page, llms.txt
methods.py      a page for each method: what it learns, settings, metrics, recipes, an annotated walk through its file
mathematics.py  every loss: its formula, and its value on the vectors that the tests hold it to
metrics.py      every logged metric: meaning, healthy range, what to do outside of it
settings.py     what every method can be given
papers.py       docs/papers.md, from the recipes
reference.py    the public functions and classes, room by room
moving_from_trl.py  docs/moving-from-trl.md, from the tables that scripts go by
```
"""
