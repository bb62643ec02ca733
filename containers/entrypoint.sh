#!/bin/sh
# A BIDS App: a first argument that is a path is the dataset, as in `IMAGE /data /out participant`.
# Every other command of tripq works too: `IMAGE check /data/sub-01/dwi/sub-01_dwi.nii.gz`.
case "${1:-}" in
    */*) exec tripq segment-bids "$@" ;;
    *) exec tripq "$@" ;;
esac
