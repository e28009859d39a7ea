//! What the functions of each library answer. Each line is an expression that must be true.

use gantry_cel::{Activation, Environment, Expected, Library, Limits, Value};

fn check(env: &Environment, expressions: &str) {
    for text in expressions.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let program = env.compile(text, Expected::Any).unwrap_or_else(|issues| panic!("{text}\n{}", issues[0]));
        match program.eval(&Activation::new(), Limits::default()) {
            Ok((Value::Bool(true), _)) => {}
            other => panic!("{text}: {other:?}"),
        }
    }
}

fn kubernetes() -> Environment {
    Environment::kubernetes().build()
}

#[test]
fn lists() {
    check(
        &kubernetes(),
        r"
        [1, 2, 3].isSorted() && !['b', 'a'].isSorted() && [].isSorted()
        [1, 2].sum() == 3 && [1.5, 2.5].sum() == 4.0 && [duration('1m'), duration('1s')].sum() == duration('61s')
        ['b', 'a'].min() == 'a' && [1, 3, 2].max() == 3 && [true, false].max()
        [1, 2, 2].indexOf(2) == 1 && [1, 2, 2].lastIndexOf(2) == 2 && ['a'].indexOf('b') == -1
        [1, 2].includes(2) && !['a'].includes('b') && dyn('a').includes('a')
        [1, 2, 3].slice(1, 3) == [2, 3]
        [[1], [2, 3]].flatten() == [1, 2, 3]
        [3, 1, 2].sort() == [1, 2, 3] && [3, 1, 2].sortBy(x, -x) == [3, 2, 1]
        [1, 1, 2].distinct() == [1, 2] && [1, 2].reverse() == [2, 1] && lists.range(3) == [0, 1, 2]
        [1, 2].first() == optional.of(1) && [1, 2].last().value() == 2 && [].first() == optional.none()
        sets.contains([1, 2], [2]) && sets.intersects([1], [1, 2]) && sets.equivalent([1, 1], [1])
        ",
    );
}

#[test]
fn strings() {
    check(
        &kubernetes(),
        r#"
        'tacocat'.charAt(3) == 'o' && 'tacocat'.charAt(7) == ''
        'hello mellow'.indexOf('ello') == 1 && 'hello mellow'.indexOf('ello', 2) == 7 && 'a'.indexOf('b') == -1
        'hello mellow'.lastIndexOf('ello') == 7 && 'hello mellow'.lastIndexOf('ello', 6) == 1
        'TacoCÆt'.lowerAscii() == 'tacocÆt' && 'TacoCÆt'.upperAscii() == 'TACOCÆT'
        'hello hello'.replace('he', 'we') == 'wello wello' && 'hello hello'.replace('he', 'we', 1) == 'wello hello'
        'a,b,c'.split(',') == ['a', 'b', 'c'] && 'a,b,c'.split(',', 2) == ['a', 'b,c'] && 'a,b'.split(',', 0) == []
        'tacocat'.substring(4) == 'cat' && 'tacocat'.substring(0, 4) == 'taco'
        '  a '.trim() == 'a' && ['x', 'y'].join('-') == 'x-y' && ['x', 'y'].join() == 'xy'
        strings.quote('a"b\n') == '"a\\"b\\n"'
        '%s'.format([[1, 2]]) == '[1, 2]' && '%s'.format([{'a': 1}]) == '{"a":1}'
        'abc 123'.find('[0-9]+') == '123' && '1a2'.findAll('[0-9]') == ['1', '2'] && '1a2'.findAll('[0-9]', 1) == ['1']
        'abc'.matches('^a.c$') && 'hello'.contains('ell') && 'hello'.startsWith('he') && 'hello'.endsWith('lo')
        "#,
    );
}

#[test]
fn urls() {
    check(
        &kubernetes(),
        r"
        url('https://user@Example.com:8080/a%20b?x=1&x=2&y=%26#frag').getScheme() == 'https'
        url('https://user@Example.com:8080/a').getHost() == 'Example.com:8080'
        url('https://[::1]:80/').getHostname() == '::1' && url('https://[::1]:80/').getPort() == '80'
        url('https://example.com/').getPort() == '' && url('/path').getHost() == ''
        url('https://example.com/with space').getEscapedPath() == '/with%20space'
        url('https://example.com/?k=a+b&k=c').getQuery() == {'k': ['a b', 'c']}
        isURL('https://a.b/c') && isURL('/a') && !isURL('a b') && !isURL('../x') && !isURL('')
        url('https://a/') == url('https://a/') && url('https://a/') != url('https://b/')
        ",
    );
}

#[test]
fn quantities() {
    check(
        &kubernetes(),
        r"
        isQuantity('1.5Gi') && !isQuantity('10 Mo') && isQuantity('-5') && !isQuantity('')
        quantity('1Gi').isGreaterThan(quantity('1G')) && quantity('1k').isLessThan(quantity('1Ki'))
        quantity('200M').compareTo(quantity('0.2G')) == 0 && quantity('1').compareTo(quantity('2')) == -1
        quantity('50k').asInteger() == 50000 && quantity('50k').isInteger() && !quantity('0.5').isInteger()
        !quantity('1000m').isInteger() && quantity('9999999999999999999999').isInteger() == false
        quantity('50.703k').asApproximateFloat() == 50703.0 && sign(quantity('-1')) == -1 && sign(quantity('0')) == 0
        quantity('50k').add(quantity('20k')) == quantity('70k') && quantity('50k').add(20) == quantity('50020')
        quantity('50k').sub(quantity('20k')) == quantity('30k') && quantity('50k').sub(20000) == quantity('30k')
        quantity('1Mi') == quantity('1024Ki') && quantity('1') != quantity('2')
        ",
    );
}

#[test]
fn addresses() {
    check(
        &kubernetes(),
        r"
        isIP('127.0.0.1') && isIP('::1') && !isIP('127.0.0.256') && !isIP('::ffff:1.2.3.4') && !isIP('fe80::1%en0')
        ip('127.0.0.1').family() == 4 && ip('::1').family() == 6
        ip('127.0.0.1').isLoopback() && ip('0.0.0.0').isUnspecified() && ip('169.254.1.1').isLinkLocalUnicast()
        ip('224.0.0.1').isLinkLocalMulticast() && ip('8.8.8.8').isGlobalUnicast()
        !ip('255.255.255.255').isGlobalUnicast()
        ip.isCanonical('2001:db8::abcd') && !ip.isCanonical('2001:DB8::ABCD')
        string(ip('2001:DB8::ABCD')) == '2001:db8::abcd' && ip('1.2.3.4') == ip('1.2.3.4')
        isCIDR('192.168.0.0/24') && !isCIDR('192.168.0.0/33') && !isCIDR('192.168.0.0')
        cidr('192.168.0.0/24').containsIP('192.168.0.1') && !cidr('192.168.0.0/24').containsIP(ip('192.168.1.1'))
        cidr('192.168.0.0/24').containsCIDR('192.168.0.0/25')
        !cidr('192.168.0.0/24').containsCIDR(cidr('192.168.0.0/23'))
        !cidr('192.168.0.0/24').containsIP('::1') && cidr('::/0').containsIP('::1')
        cidr('192.168.0.1/24').ip() == ip('192.168.0.1') && cidr('192.168.0.1/24').masked() == cidr('192.168.0.0/24')
        cidr('192.168.0.1/24').prefixLength() == 24 && string(cidr('192.168.0.1/24')) == '192.168.0.1/24'
        type(ip('::1')) == net.IP && type(cidr('::/0')) == net.CIDR
        ",
    );
}

#[test]
fn versions() {
    check(
        &kubernetes(),
        r"
        isSemver('1.2.3-rc.1+b') && !isSemver('1.2') && isSemver('v1.2', true) && !isSemver('01.0.0')
        semver('1.2.3').isGreaterThan(semver('1.2.3-rc.1')) && semver('1.2.3-rc.2').isLessThan(semver('1.2.3-rc.10'))
        semver('1.2.3').compareTo(semver('1.2.3+x')) == 0 && semver('v01.2', true) == semver('1.2.0')
        semver('1.2.3').major() == 1 && semver('1.2.3').minor() == 2 && semver('1.2.3').patch() == 3
        ",
    );
}

#[test]
fn formats() {
    check(
        &kubernetes(),
        r"
        !format.dns1123Label().validate('my-name').hasValue() && format.dns1123Label().validate('My.Name').hasValue()
        format.named('labelValue').value().validate('a b').hasValue() && !format.named('nothing').hasValue()
        !format.uri().validate('http://example.com').hasValue() && format.uri().validate('../x').hasValue()
        format.uuid().validate('x').value() == ['does not match the UUID format']
        !format.uuid().validate('123e4567-e89b-12d3-a456-426614174000').hasValue()
        !format.byte().validate('aGVsbG8=').hasValue() && format.byte().validate('!').value() == ['invalid base64']
        !format.date().validate('2021-01-01').hasValue() && format.date().validate('2021-13-01').hasValue()
        !format.datetime().validate('2021-01-01T00:00:00Z').hasValue() && format.datetime().validate('x').hasValue()
        format.dns1123LabelPrefix().validate('a-') == optional.none()
        format.qualifiedName().validate('a/b') == optional.none()
        ",
    );
}

#[test]
fn optionals_and_macros() {
    check(
        &kubernetes(),
        r"
        {'a': 1}.?a.orValue(0) == 1 && {'a': 1}.?b.orValue(0) == 0 && !{'a': 1}.?b.hasValue()
        {'a': {'b': 'c'}}.?a.b.optMap(x, x + 'd').value() == 'cd' && [1][?3].or(optional.of(4)).value() == 4
        {?'a': optional.none(), ?'b': optional.of(1)} == {'b': 1} && [?optional.none(), 2] == [2]
        optional.ofNonZeroValue('') == optional.none() && optional.of(1).optFlatMap(x, optional.of(x + 1)).value() == 2
        [1, 2].all(i, v, v == i + 1) && [1, 2].exists(i, v, i == 1 && v == 2) && [1, 2].existsOne(i, v, v > 1)
        [1, 2].transformList(i, v, i * v) == [0, 2] && [1, 2].transformMap(i, v, v > 1, v * 2) == {1: 4}
        {'a': 1}.transformMapEntry(k, v, {v: k}) == {1: 'a'} && {'a': 1}.transformMap(k, v, v + 1) == {'a': 2}
        [1, 2, 3].filter(x, x > 1).map(x, x * 2) == [4, 6] && [1, 2].map(x, x > 1, x) == [2]
        [1, 2].exists_one(x, x == 1) && [0, 1].exists(x, 1 / x == 1) && ![0, 1].all(x, 1 / x == 2)
        has({'a': 1}.a) && !has({'a': 1}.b) && {'a': 1}.all(k, k == 'a')
        ",
    );
}

#[test]
fn what_kubernetes_does_not_have() {
    let env =
        Environment::builder().library(Library::Bindings).library(Library::Math).library(Library::Encoders).build();
    check(
        &env,
        r"
        cel.bind(x, 'a', x + x) == 'aa' && cel.bind(unused, 1 / 0, true)
        math.greatest(1, 2.5, 2u) == 2.5 && math.least([3, 1]) == 1 && math.abs(-3) == 3 && math.sign(-2.0) == -1.0
        math.ceil(1.2) == 2.0 && math.round(2.5) == 3.0 && math.bitAnd(6, 3) == 2 && math.bitShiftLeft(1, 64) == 0
        base64.encode(b'hello') == 'aGVsbG8=' && base64.decode('aGVsbG8') == b'hello'
        ",
    );
    assert!(kubernetes().compile("math.abs(1)", Expected::Any).is_err());
}
