"""The one web page of ``serve.py``; it loads nothing from elsewhere."""

import html
from collections.abc import Sequence

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>@TITLE@</title>
<link rel="icon" href="data:,">
<style>
  body { font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 60rem; padding: 0 1rem; color: #222 }
  h1 { font-size: 1.3rem; overflow-wrap: anywhere } p { color: #555 }
  form { border: 2px dashed #99a; border-radius: 8px; padding: 1.2rem; display: flex; gap: 1rem; flex-wrap: wrap;
    align-items: center }
  form.over { background: #eef4ff }
  button { font: inherit; padding: .3rem 1rem }
  main { display: flex; gap: 2rem; flex-wrap: wrap; margin-top: 1.5rem }
  img { max-width: min(100%, 30rem); height: auto; align-self: flex-start }
  table { border-collapse: collapse; align-self: flex-start }
  th, td { text-align: left; padding: .25rem .8rem .25rem 0; border-bottom: 1px solid #ddd }
  #fault { color: #a00; font-weight: 600; min-height: 1.5em }
</style>
</head>
<body>
<h1>@TITLE@</h1>
<p>One model answers: @TASKS@. The picture is not kept.</p>
<form id="form">
  <input id="picture" name="picture" type="file" accept="image/*" required aria-label="picture">
  <label><input id="faces" type="checkbox" @FACES@> find faces first</label>
  <button>Ask</button>
</form>
<p id="fault" role="alert"></p>
<main id="found" aria-live="polite"></main>
<script>
const form = document.getElementById("form"), input = document.getElementById("picture");
const fault = document.getElementById("fault"), found = document.getElementById("found");
function text(tag, content, parent) {
  const node = document.createElement(tag); node.textContent = content; parent.append(node); return node;
}
function say(told) {
  if ("class" in told) return told.class + "  (" + (100 * told.probability).toFixed(0) + " %)";
  if ("points" in told) return told.points.length + " points";
  return told.value === null ? "not finite" : Number(told.value.toPrecision(3)) + " " + told.unit;
}
form.addEventListener("submit", async (event) => {
  event.preventDefault();
  fault.textContent = "Asking ..."; found.replaceChildren();
  const body = new FormData();
  body.append("picture", input.files[0]);
  body.append("faces", document.getElementById("faces").checked ? "detect" : "none");
  body.append("draw", "true");
  try {
    const reply = await fetch("answer", { method: "POST", body });
    const told = await reply.json();
    if (!reply.ok) throw new Error(told.error);
    fault.textContent = "";
    if (told.drawn) { const image = document.createElement("img"); image.src = told.drawn;
      image.alt = "the picture with the answers drawn"; found.append(image); }
    const table = document.createElement("table"); found.append(table);
    for (const result of told.results) {
      if (result.face !== undefined) text("th", "face " + result.face, table.insertRow());
      for (const [task, answer] of Object.entries(result.answers)) {
        const row = table.insertRow(); text("th", task, row); text("td", say(answer), row);
      }
      if (result.error) text("td", result.error, table.insertRow());
    }
  } catch (error) { fault.textContent = error.message; }
});
for (const kind of ["dragover", "dragleave", "drop"]) form.addEventListener(kind, (event) => {
  event.preventDefault(); form.classList.toggle("over", kind === "dragover");
  if (kind === "drop" && event.dataTransfer.files.length) { input.files = event.dataTransfer.files;
    form.requestSubmit(); }
});
</script>
</body>
</html>
"""


def page(title: str, tasks: Sequence[str], faces: bool) -> str:
    """The page of a model; names are escaped."""
    told = {
        "@TITLE@": html.escape(title),
        "@TASKS@": html.escape(", ".join(tasks)),
        "@FACES@": "checked" if faces else "",
    }
    text = _PAGE
    for place, value in told.items():
        text = text.replace(place, value)
    return text
