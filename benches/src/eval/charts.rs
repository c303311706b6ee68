//! Draws charts as SVG, which every browser shows within a page.

use std::fmt::Debug;

use anyhow::anyhow;
use plotters::prelude::{
    ChartBuilder, Circle, Color, IntoDrawingArea, LineSeries, Palette, Palette99, PathElement, SVGBackend,
    SeriesLabelPosition, WHITE,
};

/// Width and height of a chart in pixels.
const SIZE: (u32, u32) = (560, 340);

/// A named curve; its points are ordered from left to right.
pub(super) struct Series<'a> {
    pub(super) name: &'a str,
    pub(super) points: Vec<(f64, f64)>,
}

/// Draws the shares of values in `n_bins` equal parts of a range; values outside count in the outermost parts.
pub(super) fn histogram(
    x_label: &str,
    range: (f64, f64),
    n_bins: usize,
    series: &[(&str, Vec<f64>)],
) -> anyhow::Result<String> {
    let width = (range.1 - range.0) / n_bins as f64;
    let steps = |values: &[f64]| {
        let mut counts = vec![0usize; n_bins];
        for value in values.iter().filter(|value| value.is_finite()) {
            let bin = ((value - range.0) / width).floor().clamp(0.0, (n_bins - 1) as f64) as usize;
            counts[bin] += 1;
        }
        let share = |count: usize| count as f64 / values.len().max(1) as f64;
        let corners = counts.iter().enumerate().flat_map(|(bin, &count)| {
            let left = range.0 + bin as f64 * width;
            [(left, share(count)), (left + width, share(count))]
        });
        corners.collect()
    };
    let series: Vec<Series> = series.iter().map(|(name, values)| Series { name, points: steps(values) }).collect();
    draw(x_label, "share", &series, Style::Line)
}

/// Draws curves with their points; `diagonal` adds the line of equal values.
pub(super) fn curves(x_label: &str, y_label: &str, series: &[Series], diagonal: bool) -> anyhow::Result<String> {
    draw(x_label, y_label, series, if diagonal { Style::PointsAndDiagonal } else { Style::Points })
}

#[derive(Clone, Copy, PartialEq)]
enum Style {
    Line,
    Points,
    PointsAndDiagonal,
}

fn draw(x_label: &str, y_label: &str, series: &[Series], style: Style) -> anyhow::Result<String> {
    let finite = || series.iter().flat_map(|s| &s.points).filter(|(x, y)| x.is_finite() && y.is_finite());
    let (left, right) = finite().fold((f64::INFINITY, f64::NEG_INFINITY), |(l, r), (x, _)| (l.min(*x), r.max(*x)));
    let top = finite().fold(0.0, |top: f64, (_, y)| top.max(*y));
    if left >= right {
        return Ok(String::new());
    }
    let top = if top > 0.0 { top * 1.05 } else { 1.0 };
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        area.fill(&WHITE).map_err(failed)?;
        let mut chart = ChartBuilder::on(&area)
            .margin(12)
            .x_label_area_size(36)
            .y_label_area_size(56)
            .build_cartesian_2d(left..right, 0.0..top)
            .map_err(failed)?;
        chart.configure_mesh().x_desc(x_label).y_desc(y_label).light_line_style(WHITE).draw().map_err(failed)?;
        if style == Style::PointsAndDiagonal {
            let ends = [(left.max(0.0), left.max(0.0)), (right.min(top), right.min(top))];
            let grey = plotters::style::RGBColor(150, 150, 150);
            chart.draw_series(LineSeries::new(ends, grey)).map_err(failed)?;
        }
        for (i, one) in series.iter().enumerate() {
            let colour = Palette99::pick(i);
            let points = || one.points.iter().copied().filter(|(x, y)| x.is_finite() && y.is_finite());
            chart
                .draw_series(LineSeries::new(points(), colour.stroke_width(2)))
                .map_err(failed)?
                .label(one.name)
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], Palette99::pick(i).stroke_width(2)));
            if style != Style::Line {
                let circle = |point| Circle::new(point, 3, colour.filled());
                chart.draw_series(points().map(circle)).map_err(failed)?;
            }
        }
        if series.len() > 1 {
            let labels = chart.configure_series_labels().position(SeriesLabelPosition::UpperRight).draw();
            labels.map_err(failed)?;
        }
        area.present().map_err(failed)?;
    }
    Ok(svg)
}

fn failed(error: impl Debug) -> anyhow::Error {
    anyhow!("a chart cannot be drawn: {error:?}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_outside_count_to_the_outermost_bins() {
        let svg = histogram("years", (0.0, 10.0), 2, &[("a", vec![-5.0, 1.0, 2.0, 40.0])]).unwrap();
        assert!(svg.starts_with("<svg") && svg.contains("years") && svg.contains("polyline"));
        // Three quarters at the highest: the axis ends a little above.
        assert!(svg.contains("0.7") && !svg.contains("0.9"), "{svg}");
    }

    #[test]
    fn nothing_makes_no_chart() {
        let nothing = Series { name: "a", points: vec![(0.5, f64::NAN)] };
        assert_eq!(curves("x", "y", &[nothing], true).unwrap(), "");
    }
}
