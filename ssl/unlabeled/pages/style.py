"""CSS of a report's page: for screens and phones, in light and dark mode."""

from unlabeled.pages.palette import IN_THE_DARK, PALETTE

LIGHT = {
    "ground": "#ffffff",
    "box": "#f5f7f9",
    "ink": "#1f2328",
    "quiet": "#57606a",
    "line": "#d5dbe1",
    "accent": "#0b5cad",
    "right": "#1a7f37",
    "wrong": "#b3261e",
    "doubt": "#fff4d6",
    "doubt-edge": "#d29922",
    "shade": "#00000030",
}
DARK = {
    "ground": "#14171a",
    "box": "#1d2126",
    "ink": "#e6e8ea",
    "quiet": "#a3abb3",
    "line": "#3a4149",
    "accent": "#79b8ff",
    "right": "#56d37a",
    "wrong": "#ff8f85",
    "doubt": "#332a12",
    "doubt-edge": "#b8860b",
    "shade": "#ffffff26",
}


def _variables(colours: dict[str, str], plots: list[str]) -> str:
    named = colours | {f"colour-{number}": colour for number, colour in enumerate(plots)}
    return " ".join(f"--{name}: {colour};" for name, colour in named.items())


COLOURS = f"""
:root {{ color-scheme: light dark; {_variables(LIGHT, PALETTE)} }}
@media (prefers-color-scheme: dark) {{ :root {{ {_variables(DARK, IN_THE_DARK)} }} }}
"""
CLASSES = "".join(f".c{n} {{ fill: var(--colour-{n}); background: var(--colour-{n}); }}\n" for n in range(len(PALETTE)))
STYLE = (
    COLOURS
    + CLASSES
    + """
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0; background: var(--ground); color: var(--ink);
  font: 15px/1.5 system-ui, "Liberation Sans", Arial, sans-serif; }
main { max-width: 1180px; margin: 0 auto; padding: 24px 16px 48px; display: grid; gap: 0 40px;
  grid-template-columns: repeat(2, minmax(0, 1fr)); }
main > * { grid-column: 1 / -1; } main > .shown { grid-column: auto; } main > .wide { grid-column: 1 / -1; }
h1 { font-size: 24px; line-height: 1.25; margin: 0 0 4px; }
h2 { font-size: 18px; line-height: 1.3; margin: 0 0 6px; } h3 { font-size: 15px; margin: 16px 0 6px; }
p { margin: 4px 0 10px; max-width: 78ch; overflow-wrap: anywhere; }
section { margin: 32px 0 0; min-width: 0; }
h1, h2, h3, li, dt, dd, summary, figcaption { overflow-wrap: anywhere; }
.quiet { color: var(--quiet); font-size: 13.5px; }
.headline { font-size: 19px; line-height: 1.4; margin: 14px 0 0; }
.scroll { overflow-x: auto; max-width: 100%; scrollbar-width: thin;
  background: linear-gradient(to left, var(--ground) 30%, transparent) 100% 0 / 40px 100% no-repeat local,
    linear-gradient(to left, var(--shade), transparent) 100% 0 / 14px 100% no-repeat scroll; }
table { border-collapse: collapse; font-size: 14px; }
th { text-align: left; font-weight: 600; } thead th { vertical-align: bottom; }
th, td { padding: 5px 14px 5px 0; border-bottom: 1px solid var(--line); vertical-align: top; }
.number { text-align: right; font-variant-numeric: tabular-nums; }
.results { margin-bottom: 10px; } .results thead th { font-size: 12.5px; max-width: 15em; }
.results th, .results td { padding: 6px 10px; }
.results th:first-child { position: sticky; left: 0; background: var(--ground); padding-left: 0; min-width: 8.5em; }
.results tbody th { font-weight: 400; }
.results small { display: block; color: var(--quiet); font-size: 11.5px; white-space: nowrap; }
.results .ours th, .results .ours td { font-weight: 700; } .results td small { font-weight: 400; }
.results .gain, .results .loss { font-weight: 600; }
.results .gain { color: var(--right); } .results .loss { color: var(--wrong); }
.results .group-name th { font-weight: 600; padding-top: 14px; }
abbr { text-decoration: none; cursor: help; } sup { font-weight: 400; line-height: 0; margin-left: 2px; }
.notes { list-style: none; margin: 0 0 10px; padding: 0; font-size: 12.5px; overflow-wrap: anywhere; }
.notes { color: var(--quiet); }
.hint { margin: 0 0 2px; font-size: 12.5px; color: var(--quiet); }
.bar { width: 40%; min-width: 48px; } .bar i { display: block; height: 11px; background: var(--colour-0); }
.facts th { font-weight: 400; color: var(--quiet); min-width: 8.5em; overflow-wrap: anywhere; }
.texts td { overflow-wrap: anywhere; min-width: 7em; font-size: 13.5px; }
.texts td:first-child:not(:last-child) { min-width: 8.5em; } .texts td:last-child { min-width: 14em; }
.doubts { background: var(--doubt); border-left: 4px solid var(--doubt-edge); padding: 12px 16px; border-radius: 4px; }
.doubts ul { margin: 0; padding-left: 20px; } .doubts li { overflow-wrap: anywhere; }
nav { display: flex; flex-wrap: wrap; gap: 2px 18px; margin: 14px 0 0; font-size: 13.5px; }
a { color: var(--accent); } nav a { text-decoration: none; padding: 3px 0; } nav a:hover { text-decoration: underline; }
.plot { display: block; height: auto; fill: var(--ink); width: min(100%, calc(var(--natural) * 1.15));
  min-width: calc(var(--natural) * 0.64); }
.plot * { stroke-linejoin: round; stroke-linecap: butt; }
.tiles { display: grid; grid-template-columns: repeat(8, minmax(0, 112px)); gap: 10px; }
.query { display: grid; grid-template-columns: 132px minmax(0, 1fr); gap: 16px; padding: 10px 0;
  border-bottom: 1px solid var(--line); }
.asked { padding-right: 16px; border-right: 2px solid var(--line); }
.groups { display: grid; gap: 20px; grid-template-columns: repeat(auto-fit, minmax(min(100%, 340px), 1fr)); }
.group { display: grid; grid-auto-flow: column; grid-auto-columns: minmax(0, 132px); gap: 8px; }
.many { grid-template-columns: minmax(0, 1fr); }
.many .group { grid-auto-flow: row; grid-template-columns: repeat(auto-fill, minmax(84px, 112px)); }
.tile { margin: 0; min-width: 0; font-size: 12px; line-height: 1.3; }
.tile img { display: block; width: 100%; border-radius: 3px; border-bottom: 4px solid transparent; }
.tile.right img { border-color: var(--right); } .tile.wrong img { border-color: var(--wrong); }
.pixels { image-rendering: pixelated; }
figcaption span { display: block; overflow-wrap: anywhere; } figcaption span + span { color: var(--quiet); }
.right figcaption span:first-child { color: var(--right); } .wrong figcaption span:first-child { color: var(--wrong); }
details { margin: 10px 0 0; } summary { cursor: pointer; color: var(--accent); }
.dots { position: relative; border: 1px solid var(--line); border-radius: 3px; }
.dots svg { display: block; width: 100%; height: auto; } .dots circle { stroke: var(--ground); stroke-width: 0.6; }
.dots .faint { opacity: 0.08; } .dots .shown { stroke: var(--ink); stroke-width: 3; }
.tip { position: absolute; width: 150px; padding: 8px; background: var(--box); border: 1px solid var(--line);
  border-radius: 4px; font-size: 12px; line-height: 1.3; pointer-events: none; }
.tip canvas { display: block; margin-bottom: 6px; } .tip span { display: block; overflow-wrap: anywhere; }
.tip [hidden], .tip[hidden] { display: none; } .tip .right { color: var(--right); } .tip .wrong { color: var(--wrong); }
.legend { display: flex; flex-wrap: wrap; gap: 2px 4px; margin: 6px 0 0; }
.legend button { font: inherit; font-size: 13px; color: inherit; background: none; border: 1px solid transparent;
  border-radius: 4px; padding: 3px 7px; cursor: pointer; }
.legend [aria-pressed="true"] { border-color: var(--ink); }
.legend i { display: inline-block; width: 10px; height: 10px; border-radius: 50%; margin-right: 6px; }
pre { background: var(--box); padding: 12px; overflow-x: auto; font-size: 12.5px; line-height: 1.4; }
@media (max-width: 760px) {
  main { padding: 16px 16px 40px; grid-template-columns: minmax(0, 1fr); }
  h1 { font-size: 21px; } .headline { font-size: 17px; }
  .tiles { grid-template-columns: repeat(4, minmax(0, 1fr)); }
  .results th, .results td { padding: 6px; }
  .query { grid-template-columns: minmax(0, 1fr); } .asked { width: 112px; padding: 0; border: 0; }
}
@media print { .scroll { overflow: visible; } }
"""
)
