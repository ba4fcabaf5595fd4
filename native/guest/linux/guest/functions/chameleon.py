"""Renders an HTML table the way Chameleon does: a template compiled to Python, then run."""

import hashlib
import html
import re

TEMPLATE = """\
<table class="<?= title ?>">
<caption><?= title ?></caption>
<? for number, row in enumerate(rows): ?>
<tr id="row-<?= number ?>">
<? for cell in row: ?>
<td><?= cell ?></td>
<? end ?>
</tr>
<? end ?>
</table>
"""

INPUTS = {
    "60 × 10": {"title": "prices", "rows": 60, "columns": 10, "cell": "{row} & {column}"},
    "90 × 14": {"title": "stock <today>", "rows": 90, "columns": 14, "cell": '"{column}" of {row}'},
}


def compile_template(template):
    """`<? … ?>` is a statement, `<? end ?>` closes it, `<?= … ?>` an expression to escape."""
    lines = ["def render(emit, escape, rows, title):"]
    depth = 1
    for text, tag in re.findall(r"(.*?)(?:<\?(.*?)\?>|\Z)", template, re.DOTALL):
        if text.strip():
            lines.append("    " * depth + f"emit({text!r})")
        tag = tag.strip()
        if tag == "end":
            depth -= 1
        elif tag.startswith("="):
            lines.append("    " * depth + f"emit(escape(str({tag[1:].strip()})))")
        elif tag:
            lines.append("    " * depth + tag)
            depth += 1
    scope = {}
    exec(compile("\n".join(lines), "<template>", "exec"), scope)
    return scope["render"]


render = compile_template(TEMPLATE)


def handle(request):
    rows = [
        [request["cell"].format(row=row, column=column) for column in range(request["columns"])]
        for row in range(request["rows"])
    ]
    parts = []
    render(parts.append, html.escape, rows, request["title"])
    page = "".join(parts)
    return {"length": len(page), "sha256": hashlib.sha256(page.encode()).hexdigest()}
