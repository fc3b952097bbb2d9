"""The style sheet: system fonts, both themes from one table of colours, narrow and wide, print."""

from __future__ import annotations

from student.report.palette import declarations

_RULES = """
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%;text-size-adjust:100%;scroll-behavior:smooth}
body{margin:0;background:var(--paper);color:var(--ink);
 font:400 17px/1.6 ui-sans-serif,system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",
 "Noto Sans","Liberation Sans",Arial,sans-serif;font-feature-settings:"kern","liga";
 overflow-wrap:break-word}
h1,h2,h3,h4{line-height:1.2;text-wrap:balance;
 font-family:ui-serif,"Iowan Old Style","Palatino Linotype",Palatino,"Book Antiqua",
 "Noto Serif","Liberation Serif",Georgia,serif;font-weight:600}
.page{max-width:1180px;margin:0 auto;padding:0 clamp(16px,4vw,48px) 64px}
.bar{display:flex;justify-content:space-between;align-items:center;gap:8px 24px;flex-wrap:wrap;
 padding:16px 0;font-size:14px;color:var(--quiet)}
.bar a{color:var(--quiet);text-decoration:none;padding:4px 0;display:inline-block}
.bar a:hover{color:var(--accent);text-decoration:underline;text-underline-offset:4px}
.bar ul{list-style:none;display:flex;flex-wrap:wrap;gap:0 20px;margin:0;padding:0}
.theme{border:0;margin:0;padding:0;display:flex}
.theme label{padding:4px 12px;border:1px solid var(--rule);cursor:pointer;line-height:1.5}
.theme label+input+label{border-left:0}
.theme label:first-of-type{border-radius:6px 0 0 6px}
.theme label:last-of-type{border-radius:0 6px 6px 0}
.theme input{position:absolute;opacity:0;width:1px;height:1px}
.theme input:checked+label{background:var(--panel);color:var(--ink);font-weight:600}
.theme input:focus-visible+label{outline:2px solid var(--accent);outline-offset:2px}
h1{font-size:clamp(34px,6vw,56px);letter-spacing:-.015em;margin:clamp(24px,5vw,56px) 0 20px}
h1 small{display:block;font:600 13px/1.4 ui-sans-serif,system-ui,-apple-system,"Segoe UI",Roboto,
 "Liberation Sans",sans-serif;letter-spacing:.09em;text-transform:uppercase;color:var(--accent);
 margin-bottom:10px}
h2{font-size:clamp(26px,4vw,34px);margin:72px 0 12px;padding-top:20px;
 border-top:1px solid var(--rule);letter-spacing:-.01em}
h3{font-size:21px;margin:40px 0 8px}
h3 small,h4 small,h5 small{font-weight:400;color:var(--quiet);font-size:.75em;margin-left:.4em;
 font-family:ui-sans-serif,system-ui,-apple-system,"Segoe UI",Roboto,"Liberation Sans",sans-serif}
h4{font-size:17px;margin:0 0 8px}
h5{font-size:13px;margin:0 0 6px;font-weight:600;color:var(--quiet)}
h5 small{font-size:1em}
p{margin:0 0 16px;max-width:72ch}
.summary{font-size:clamp(18px,2.2vw,21px);line-height:1.55}
.lead,.question{color:var(--quiet)}
.question{font-style:italic;font-size:19px}
.missing{padding:10px 16px;border-left:3px solid var(--accent);background:var(--panel)}
code{font:400 .88em/1.5 ui-monospace,"SF Mono",SFMono-Regular,Menlo,Consolas,"Liberation Mono",
 monospace;overflow-wrap:anywhere}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,210px),1fr));gap:1px;
 background:var(--rule);border:1px solid var(--rule);border-radius:10px;overflow:hidden;
 margin:28px 0 0}
.tiles p{background:var(--paper);padding:18px 20px;margin:0;font-size:14px;line-height:1.4}
.tiles strong{display:block;font:600 34px/1.1 ui-serif,"Iowan Old Style","Palatino Linotype",
 Palatino,"Noto Serif","Liberation Serif",Georgia,serif;margin-bottom:6px;
 font-variant-numeric:lining-nums}
.tiles small{display:block;color:var(--quiet);font-size:13px}
.gallery{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,310px),1fr));
 gap:28px 32px;margin:16px 0 24px}
.gallery.small{grid-template-columns:repeat(auto-fill,minmax(min(100%,245px),1fr));gap:24px}
figure{margin:0;min-width:0}
figcaption{font-weight:600;font-size:15px;line-height:1.4;margin-bottom:6px}
figcaption small{display:block;font-weight:400;font-size:14px;color:var(--quiet)}
.plot{display:block;width:100%;height:auto;max-width:470px;overflow:visible}
.plot *{stroke-linejoin:round;stroke-linecap:butt}
.plot text{font-family:inherit}
.cells path{shape-rendering:crispEdges}
.legend{list-style:none;display:flex;flex-wrap:wrap;gap:2px 20px;margin:10px 0 4px;padding:0;
 font-size:14px;color:var(--quiet)}
.legend li{display:flex;align-items:center;gap:8px;min-width:0}
.swatch{flex:none}
.scroll{position:relative;overflow-x:auto;margin:20px 0;border-radius:4px}
.scroll:focus-visible,summary:focus-visible,a:focus-visible{outline:2px solid var(--accent);
 outline-offset:3px}
table{border-collapse:collapse;font-size:14.5px;line-height:1.4;min-width:min(100%,480px);
 font-variant-numeric:tabular-nums lining-nums}
caption{text-align:left;font-weight:600;font-size:15px;padding:0 0 8px;white-space:normal;
 max-width:calc(100vw - 32px)}
th,td{text-align:right;padding:6px 12px;vertical-align:top;white-space:nowrap;
 border-bottom:1px solid var(--rule)}
th:first-child,td:first-child{padding-left:0;text-align:left}
td.words,th.words{text-align:left}
th:last-child,td:last-child{padding-right:2px}
thead th{color:var(--quiet);font-weight:600;border-bottom:2px solid var(--rule)}
tbody th{font-weight:400;white-space:normal;min-width:8em}
.group th{font-weight:600;padding-top:16px;color:var(--accent)}
td small,th small{color:var(--quiet)}
tbody tr:not(.group):hover{background:var(--panel)}
details{margin:12px 0;max-width:100%}
summary{cursor:pointer;font-size:15px;padding:6px 0;color:var(--accent)}
details dl{margin:4px 0 12px}
dl{display:grid;grid-template-columns:minmax(90px,max-content) 1fr;gap:6px 20px;font-size:15px;
 line-height:1.5}
dt{color:var(--quiet)}
dd{margin:0;min-width:0}
.sample{margin:28px 0;padding:20px clamp(14px,2.5vw,26px);background:var(--panel);
 border-radius:10px}
blockquote{margin:0 0 16px;font-size:17px;line-height:1.5;max-width:80ch}
.sides{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,300px),1fr));
 gap:18px 28px}
.sides section{min-width:0}
.sides ol{list-style:none;margin:0;padding:0;font-size:14px;line-height:1.45}
.sides li{padding:7px 10px;border-top:1px solid var(--rule);position:relative}
.cosine{float:right;margin-left:12px;color:var(--quiet);font-variant-numeric:tabular-nums}
.agreed{background:var(--agree);color:var(--ink)}
.agreed .cosine{color:var(--agree-ink);font-weight:600}
.agreed .cosine::before{content:"✓ "}
span.agreed{padding:1px 6px;border-radius:4px}
.hidden{position:absolute;width:1px;height:1px;overflow:hidden;clip-path:inset(50%);
 white-space:nowrap}
footer{margin-top:56px;padding-top:16px;border-top:1px solid var(--rule);font-size:14px;
 color:var(--quiet)}
@media (max-width:600px){body{font-size:16px}h2{margin-top:52px}
 th,td{padding:6px 9px}.bar nav{order:2;width:100%}}
@media (prefers-reduced-motion:reduce){html{scroll-behavior:auto}}
@media print{.bar,summary{display:none}body{font-size:10.5pt}.page{max-width:none;padding:0}
 .scroll{overflow:visible}h2{break-after:avoid;margin-top:28pt}h3,h4,figcaption{break-after:avoid}
 figure,.sample,tr{break-inside:avoid}details::details-content{content-visibility:visible}
 .gallery{grid-template-columns:repeat(3,1fr);gap:12pt}table{font-size:8.5pt}
 .sample{border:1px solid var(--rule);background:none}}
"""


def style_sheet() -> str:
    """The style sheet. Whoever prints prints on white."""
    light, dark = declarations(dark=False), declarations(dark=True)
    themes = (
        f":root{{{light}}}"
        f"@media (prefers-color-scheme:dark){{:root{{{dark}}}}}"
        f":root:has(#theme-light:checked){{{light}}}"
        f":root:has(#theme-dark:checked){{{dark}}}"
        f"@media print{{:root,:root:has(#theme-dark:checked){{{light}}}}}"
    )
    return themes + "".join(_RULES.splitlines())
