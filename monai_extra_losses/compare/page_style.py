"""How the report of a comparison looks: on a screen, light or dark, and on paper."""

LIGHT = {
    "page": "#ffffff",
    "text": "#1b1f24",
    "soft": "#5a6370",
    "line": "#d5dae0",
    "box": "#f4f6f8",
    "band": "#cfd6de",
    "better": "#0072b2",
    "worse": "#d55e00",
    "link": "#0072b2",
    "c1": "#0072b2",
    "c2": "#d55e00",
    "c3": "#009e73",
    "c4": "#cc79a7",
    "c5": "#56b4e9",
    "c6": "#e69f00",
}
"""Colours on white, by name."""

_DARK = {
    "page": "#15181c",
    "text": "#e6e9ed",
    "soft": "#a3acb8",
    "line": "#3a414a",
    "box": "#1e2329",
    "band": "#3b444f",
    "better": "#56b4e9",
    "worse": "#f0803c",
    "link": "#7cc4f0",
    "c1": "#3d9bdc",
    "c2": "#f0803c",
    "c3": "#1fbf91",
    "c4": "#d991b8",
    "c5": "#8fd0f5",
    "c6": "#f0b429",
}

_PAPER = LIGHT | {"text": "#000000", "soft": "#444444", "line": "#cccccc", "box": "#ffffff"}

FIGURES = """
svg text { fill: var(--text); font-size: 13px; }
svg .tick, svg .value { fill: var(--soft); font-size: 12px; }
svg .value { font-variant-numeric: tabular-nums; }
svg .axis { fill: var(--soft); font-size: 12.5px; }
.grid { stroke: var(--line); stroke-width: 1; }
.noise { fill: var(--band); opacity: 0.6; }
.zero { stroke: var(--text); stroke-width: 1.2; }
.seed { fill: none; stroke: var(--link); stroke-width: 1.8; }
.mean { stroke: var(--text); stroke-width: 2; }
.arrow { fill: var(--link); }
.interval { stroke: currentColor; stroke-width: 2.4; }
.better { color: var(--better); } .worse { color: var(--worse); } .tie, .unclear { color: var(--soft); }
.better circle, .worse circle, .filled { fill: currentColor; }
.tie circle, .unclear circle, .hollow { fill: var(--page); stroke: currentColor; stroke-width: 2; }
.share { fill: var(--link); }
.curve { fill: none; stroke: currentColor; stroke-width: 2.2; stroke-linejoin: round; }
.spread { fill: currentColor; opacity: 0.22; }
.c0 { color: var(--text); } .c1 { color: var(--c1); } .c2 { color: var(--c2); } .c3 { color: var(--c3); }
.c4 { color: var(--c4); } .c5 { color: var(--c5); } .c6 { color: var(--c6); }
""".strip()
"""Of the drawings; a colour is `var(--name)`."""

_SCREEN = """
* { box-sizing: border-box; }
html { background: var(--page); color: var(--text); -webkit-text-size-adjust: 100%; }
body {
  margin: 0 auto; padding: 24px 16px 64px; max-width: 1120px;
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
  overflow-wrap: anywhere;
}
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 4px; }
h2 { font-size: 1.2rem; margin: 44px 0 8px; padding-top: 14px; border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 22px 0 6px; }
p, ul.said { margin: 8px 0; max-width: 76ch; }
ul.said { padding-left: 1.2em; }
.answer { background: var(--box); border-left: 4px solid var(--link); padding: 8px 18px; margin: 18px 0; }
.answer p { margin: 8px 0; }
.answer p:first-child { font-size: 1.1rem; font-weight: 600; }
.soft, figcaption, .caption { color: var(--soft); font-size: 0.875rem; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 400px), 1fr)); gap: 20px 36px; }
.small { grid-template-columns: repeat(auto-fill, minmax(min(100%, 310px), 1fr)); }
figure { margin: 10px 0; max-width: 560px; min-width: 0; break-inside: avoid; }
figcaption { margin-bottom: 4px; }
figcaption strong { color: var(--text); font-weight: 600; }
svg { display: block; width: 100%; height: auto; overflow: visible; }
""".strip()

_REST = """
.legend { list-style: none; display: flex; flex-wrap: wrap; gap: 2px 18px; padding: 0; margin: 8px 0; }
.legend li { display: flex; align-items: center; gap: 6px; font-size: 0.875rem; min-width: 0; }
.legend svg { width: 30px; height: 10px; flex: none; }
.legend span { color: var(--text); min-width: 0; }
.box { overflow-x: auto; margin: 4px 0 12px; }
.box:focus-visible { outline: 2px solid var(--link); }
table { border-collapse: separate; border-spacing: 0; font-size: 0.875rem; font-variant-numeric: tabular-nums;
  overflow-wrap: normal; }
.caption { margin: 14px 0 0; break-after: avoid; }
th, td { padding: 4px 9px; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
thead th { white-space: normal; vertical-align: bottom; color: var(--soft); font-weight: 600; }
th:first-child { text-align: left; position: sticky; left: 0; background: var(--page); }
tbody th { font-weight: 600; white-space: normal; min-width: 11em; overflow-wrap: anywhere; }
td.better, td.worse { font-weight: 700; }
details { margin: 10px 0; border: 1px solid var(--line); border-radius: 4px; padding: 6px 14px; }
summary { cursor: pointer; font-weight: 600; }
dl { display: grid; grid-template-columns: minmax(8em, max-content) 1fr; gap: 4px 18px; font-size: 0.9375rem; }
dt { color: var(--soft); } dd { margin: 0; min-width: 0; white-space: pre-line; }
.case { margin: 18px 0; break-inside: avoid; }
.pictures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 400px), 1fr)); gap: 14px; }
.pictures figure { max-width: none; margin: 0; }
.pictures img { display: block; width: 100%; height: auto; background: #ffffff; }
code { font: 0.9em ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace; }
@media (max-width: 560px) {
  body { padding: 16px 14px 48px; }
  dl { grid-template-columns: 1fr; gap: 0; } dd { margin-bottom: 8px; }
  .answer { padding: 6px 12px; }
  tbody th { min-width: 8.5em; }
}
@media print {
  :root { color-scheme: light; @@PAPER@@ }
  @page { margin: 14mm; }
  * { -webkit-print-color-adjust: exact; print-color-adjust: exact; }
  body { max-width: none; padding: 0; font-size: 10.5pt; }
  h2, h3, p:has(+ figure), p:has(+ .figures), .legend { break-after: avoid; }
  figure { max-width: 105mm; } h2 { margin-top: 24px; }
  tr, summary { break-inside: avoid; }
  .box { overflow: visible; }
  .figures { grid-template-columns: 1fr 1fr; } .small { grid-template-columns: 1fr 1fr 1fr; }
  .pictures { grid-template-columns: 1fr 1fr; }
  table { font-size: 7.5pt; } th, td { padding: 2px 4px; } tbody th { min-width: 0; }
}
""".strip()


def _variables(colours: dict[str, str]) -> str:
    return " ".join(f"--{name}: {value};" for name, value in colours.items())


STYLE = f"""
:root {{ color-scheme: light dark; {_variables(LIGHT)} }}
@media (prefers-color-scheme: dark) {{ :root {{ {_variables(_DARK)} }} }}
{_SCREEN}
{FIGURES}
{_REST.replace("@@PAPER@@", _variables(_PAPER))}
""".strip()
