"""Reports: analyses and their results on one HTML page that opens anywhere.

`interp.reports.demo` runs every analysis on the bundled toy, `interp.reports.one_prompt` runs those that need no labels on
one picture and one question, and `interp.reports.page` writes a self-contained HTML file.
"""
