"""A page that tells what a run, or a sweep, came to: one HTML file that opens anywhere, offline.

    records, collect     what the folders of runs and sweeps hold, as checked plain data
    look, neighbours     what needs the student's own vectors of held-out texts
    markup, wording      HTML as values, escaped by default; how figures are named and written
    palette, style       the colours of both themes; the style sheet
    figures, plots       a drawing as inline SVG or as a PNG; a drawing function per kind of plot
    opening, kept, ablation, similarity, training, throughput, seen, provenance    the sections
    page                 the sections as one document

May import what `student` may; nothing else of `student` imports it.
"""
