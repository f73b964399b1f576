"""From result rows to tables, figures and one page. Reads rows and nothing else: no torch, no model.

`rows` owns the row format, `gallery` the format of the kept images, `catalogue` names every figure,
`build.make_report` writes the report.
"""
