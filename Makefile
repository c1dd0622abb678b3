# Short names for the scripts; they work without make.
.PHONY: all test demo format clean

all:
	script/bootstrap

test:
	script/test

demo:
	script/demo

format:
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .

clean:
	rm -rf .venv build dist *.egg-info aoe_fast/*.c aoe_fast/*.so aoe_fast/*.html
