#!/bin/sh
# Installs the libraries that the agent imports into TREE, at the versions of constraints.txt, without the agent itself.
# Usage: python.sh TREE EXTRAS REPORT; REPORT gets pip's own account of what came from where, for the bill of materials.
set -eu
export LC_ALL=C PYTHONHASHSEED=0 PYTHONDONTWRITEBYTECODE=1
here=$(dirname "$(realpath "$0")")
root=$(realpath "$here/../..")
site=$1/usr/local/lib/python3.11/dist-packages
extras=$2
report=$3
python=$root/.venv/bin/python

# What has no wheel is compiled here once; without debugging data it comes out the same in any directory.
export PIP_CACHE_DIR="$root/build/cache/pip" CFLAGS="-O2 -g0" SOURCE_DATE_EPOCH=315532800
mkdir -p "$site"
# pip would take the one that was built before, with the feature API or without.
"$python" -m pip cache remove -qq tpm2_pytss || true
"$here/without-fapi.sh" "$python" -m pip install -qq --no-compile --no-warn-script-location --target "$site" \
    --report "$report" -c "$root/constraints.txt" "$root[$extras]"
if grep -q '"name": "nvidia-' "$report"; then
    echo "torch came as its CUDA build; the payload takes the one for CPUs (docs/developer.md)." >&2
    exit 1
fi

# Ours is put in by build.sh, with the release's version.
rm -rf "$site"/secur_e_health-* "$site/agent" "$site/provisioning" "$site/bin" "$site/share" "$site/include"

# For building against, for testing, and pip's notes, which name this machine's directories.
find "$site" -depth -type d \( -name __pycache__ -o -name tests -o -path "$site/*/include" \) -exec rm -rf {} +
find "$site" \( -name '*.a' -o -name '*.h' -o -name '*.hpp' -o -name '*.pyi' -o -name '*.pxd' -o -name '*.pyx' -o -name '*.pxi' \
    -o -name '*.c' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh' -o -path '*.dist-info/RECORD' \
    -o -path '*.dist-info/INSTALLER' -o -path '*.dist-info/REQUESTED' -o -path '*.dist-info/direct_url.json' \) \
    -type f -delete
if [ -d "$site/torch" ]; then
    # torch starts torch_shm_manager itself; protoc is for building.
    find "$site/torch/bin" -type f ! -name torch_shm_manager -delete
    rm -rf "$site/torch/share" "$site/torch/test"
fi
# Ways to other machines, which a worker without network has no use for.
rm -f "$site"/pyarrow/libarrow_flight.so* "$site"/pyarrow/libarrow_python_flight.so* "$site"/pyarrow/libarrow_s3.so* \
    "$site"/pyarrow/_flight.* "$site"/pyarrow/_s3fs.* "$site"/pyarrow/_gcsfs.* "$site"/pyarrow/_hdfs.*

# Whether enough is left: each library that needs one of Debian's, or lost a part, is loaded in the payload itself.
for module in cryptography.x509 flwr.app grpc numpy pydantic_core tuf.ngclient onnx PIL.Image pkcs11 pyarrow.parquet pyseccomp \
    fastapi polib smartcard.scard systemd.journal torch tpm2_pytss zxingcpp; do
    package=${module%%.*}
    [ -e "$site/$package" ] || [ -e "$site/$package.py" ] || continue
    unshare --map-root-user --mount sh -c 'mount --rbind /dev "$1/dev" && exec chroot "$1" /usr/bin/python3 -BPsc "import $2"' \
        sh "$1" "$module" || {
        echo "$module cannot be loaded in the payload." >&2
        exit 1
    }
done
