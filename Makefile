# Each target is a script kept where it belongs; README.md says what they are for.
.PHONY: demo test check bench soak
demo:  ; tests/demo/run.sh
test:  ; tests/run.sh
check: ; tests/check.sh
bench: ; bench/run.sh
soak:  ; tests/soak.sh
