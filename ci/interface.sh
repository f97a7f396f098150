#!/usr/bin/env bash
# Compares the public interface with ci/interface.txt; `--bless` writes that file.
# The listing is what rustdoc prints of every public item: its declaration, its methods, the traits
# that it implements, and the auto traits that it lacks.
source "$(dirname "$0")/common.sh"
export LC_ALL=C

cargo doc --quiet --no-deps --locked --all-features
doc=${CARGO_TARGET_DIR:-target}/doc/percpu_memcg

# One declaration, header or section of a page starts on a line of its own.
split='s/<section /\n&/g; s/<h2 /\n&/g; s/<dt id="reexport/\n&/g
    s/<h[34] class="code-header">/\n@&/g; s/<pre class="rust item-decl">/\n@&/g
    s#</h[34]>#\n=#g; s#</pre>#\n=#g; s#</div># #g'
# shellcheck disable=SC2016
select='
    /^<section /                      { foreign = / class="method trait-impl| id="variant/ }
    /^<h2 id="synthetic-impl/         { auto = 1 }
    /^<h2 id="blanket-impl/           { blanket = 1 }
    /^<dt id="reexport/               { sub(/<\/dt>.*/, ""); print }
    /^=/                              { inside = 0 }
    /^@/                              { inside = !foreign && !blanket && (!auto || />!<.*>(Send|Sync|Unwind)|!<a [^>]*>(Send|Sync|Unwind)/)
                                        indent = /^@<h4/ ? "    " : ""
                                        sub(/^@/, "") }
    inside && !/StructuralPartialEq/  { print indent $0 }'
plain='s/<span>Show [^<]*<\/span>//; s/<[^>]*>//g; s/&lt;/</g; s/&gt;/>/g; s/&quot;/"/g; s/&#39;/'"'"'/g
    s/&nbsp;/ /g; s/&amp;/\&/g; s/[[:space:]]*$//; /^$/d'

listing() {
    find "$doc" -name '*.html' -printf '%P\n' | sort | while read -r page; do
        text=$(sed "$split" "$doc/$page" | awk "$select" | sed "$plain")
        if [ -n "$text" ]; then printf '\n%s\n%s\n' "## ${page%.html}" "$text"; fi
    done
}

if [ "${1-}" = --bless ]; then
    listing >ci/interface.txt
elif ! diff -u ci/interface.txt <(listing); then
    echo "The public interface changed. If that is meant: ci/interface.sh --bless, and a line in CHANGELOG.md."
    exit 1
fi
