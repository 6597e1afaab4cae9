"""Reports: what was found, on one page that opens anywhere.

`interp.reports.page` composes a self-contained HTML file; `interp.reports.demo` runs every analysis on the bundled toy
and `interp.reports.own` those that need no labels on a model, a picture and a question of the user's.
"""
